// Engines of several ranks in one process, turned by hand, and the dense reference beside them.
#pragma once

#include <memory>
#include <vector>

#include "core/engine.h"
#include "host/host_device.h"
#include "world.h"

namespace crossover::testing {

inline Segment make_segment(const std::string& name, std::vector<int64_t> numels,
                            Dtype dtype = Dtype::kFloat32) {
  std::vector<std::string> names;
  for (size_t i = 0; i < numels.size(); ++i) names.push_back(name + "." + std::to_string(i));
  return {name, dtype, std::move(numels), std::move(names)};
}

/// Three segments with odd sizes, an empty tensor and an empty segment.
inline SegmentPlan small_plan(Dtype wire = Dtype::kFloat32) {
  return SegmentPlan({make_segment("stem", {5, 0, 128}), make_segment("empty", {0}),
                      make_segment("body", {1000, 3}), make_segment("head", {70001})},
                     wire, {3, 2, 1, 0});
}

/// One rank's tensors of a float32 plan.
class Replica {
 public:
  explicit Replica(const SegmentPlan& plan) {
    for (const Segment& segment : plan.segments()) {
      for (const int64_t numel : segment.numels) tensors.emplace_back(numel, 0.0f);
    }
    for (auto& tensor : tensors) addresses.push_back(tensor.data());
  }
  std::vector<std::vector<float>> tensors;
  std::vector<void*> addresses;
};

/// `size` engines without threads over one medium; every rank has the same plan and schedule.
class EngineWorld {
 public:
  EngineWorld(Medium medium, int size, EngineConfig config = {}, double timeout_s = 30.0)
      : fabric_(make_fabric(medium, size)) {
    for (int rank = 0; rank < size; ++rank) {
      config.rank = rank;
      config.size = size;
      engines.push_back(std::make_unique<Engine>(
          config,
          std::make_unique<StreamTransport>(stream_config(rank, size, timeout_s),
                                            std::move(fabric_.pipes[rank])),
          std::make_unique<NullPoller>(), clock));
    }
  }

  uint32_t add_plan(const SegmentPlan& plan, const std::shared_ptr<const Schedule>& schedule,
                    uint64_t first_round = 0) {
    uint32_t id = 0;
    for (auto& engine : engines) id = engine->add_plan(plan, schedule, host_device(), first_round);
    return id;
  }
  void turn() {
    for (auto& engine : engines) {
      if (engine) engine->progress_once();
    }
  }
  /// Opens and closes one round on every rank.
  void round(uint32_t plan, std::vector<Replica>& replicas) {
    for (size_t rank = 0; rank < engines.size(); ++rank) {
      engines[rank]->open_round(plan, replicas[rank].addresses);
    }
    close(plan, replicas);
  }
  void close(uint32_t plan, std::vector<Replica>& replicas) {
    for (int turns = 0; turns < 200000; ++turns) {
      turn();
      bool all = true;
      for (size_t rank = 0; rank < engines.size(); ++rank) {
        all =
            engines[rank]->close_round(plan, replicas[rank].addresses, 0.0) == WaitStatus::kMixed &&
            all;
      }
      if (all) return;
    }
    throw std::runtime_error("the round did not end");
  }
  LocalNetwork& network() { return *fabric_.network; }
  int size() const { return static_cast<int>(engines.size()); }

  ManualClock clock;
  std::vector<std::unique_ptr<Engine>> engines;

 private:
  Fabric fabric_;
};

}  // namespace crossover::testing
