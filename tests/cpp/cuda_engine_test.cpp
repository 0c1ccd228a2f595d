// Engines whose tensors are on a GPU, over host transports, beside engines of the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "cuda/cuda_device.h"
#include "engine_world.h"
#include "fake_cuda.h"

namespace crossover::testing {
namespace {

/// One rank's tensors of a float32 plan in memory of the fake GPU.
class GpuReplica {
 public:
  GpuReplica(std::shared_ptr<FakeCuda> gpu, const SegmentPlan& plan, uint32_t seed)
      : gpu_(std::move(gpu)), stream(gpu_->training_stream()) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (const Segment& segment : plan.segments()) {
      for (const int64_t numel : segment.numels) {
        numels.push_back(static_cast<size_t>(numel));
        auto* tensor = reinterpret_cast<float*>(gpu_->allocate_device(numels.back() * 4 + 4));
        for (size_t k = 0; k < numels.back(); ++k) tensor[k] = normal(random);
        addresses.push_back(tensor);
      }
    }
  }
  ~GpuReplica() {
    for (void* address : addresses) gpu_->free_device(static_cast<std::byte*>(address));
  }
  GpuReplica(const GpuReplica&) = delete;
  GpuReplica& operator=(const GpuReplica&) = delete;

  float* tensor(size_t index) const { return static_cast<float*>(addresses[index]); }

 private:
  std::shared_ptr<FakeCuda> gpu_;

 public:
  StreamHandle stream;
  std::vector<size_t> numels;
  std::vector<void*> addresses;
};

void train(float* x, size_t numel, uint64_t round) {
  for (size_t k = 0; k < numel; ++k) x[k] = 0.75F * x[k] + static_cast<float>((round + k) % 7);
}

/// The same ranks twice: on the fake GPU, whose streams run in an order that is drawn, and on the
/// host.
class TwoWorlds {
 public:
  TwoWorlds(Medium medium, int size, uint32_t seed)
      : random_(seed), gpu_world_(medium, size), host_world_(medium, size) {
    gpu->run_host_functions_at_once();
    for (int rank = 0; rank < size; ++rank) {
      devices.push_back(std::make_shared<CudaDevice>(gpu, 0));
    }
  }

  void add_plan(const SegmentPlan& plan, const std::shared_ptr<const Schedule>& schedule) {
    host_world_.add_plan(plan, schedule);
    for (int rank = 0; rank < host_world_.size(); ++rank) {
      gpu_world_.engines[rank]->add_plan(plan, schedule, devices[rank], 0);
      gpu_replicas.push_back(std::make_unique<GpuReplica>(gpu, plan, 10u + rank));
      host_replicas.emplace_back(plan);
      for (size_t i = 0; i < host_replicas[rank].tensors.size(); ++i) {
        std::copy_n(gpu_replicas[rank]->tensor(i), gpu_replicas[rank]->numels[i],
                    host_replicas[rank].tensors[i].begin());
      }
    }
  }

  void round(uint64_t round) {
    for (auto& replica : host_replicas) {
      for (auto& tensor : replica.tensors) train(tensor.data(), tensor.size(), round);
    }
    host_world_.round(0, host_replicas);
    for (int rank = 0; rank < host_world_.size(); ++rank) {
      GpuReplica& replica = *gpu_replicas[rank];
      gpu->put(replica.stream, "train", [&replica, round] {
        for (size_t i = 0; i < replica.numels.size(); ++i) {
          train(replica.tensor(i), replica.numels[i], round);
        }
      });
      gpu_world_.engines[rank]->open_round(0, replica.addresses, replica.stream);
    }
    close();
  }

  void expect_equal() {
    gpu->run();
    for (size_t rank = 0; rank < host_replicas.size(); ++rank) {
      for (size_t i = 0; i < host_replicas[rank].tensors.size(); ++i) {
        const auto& wanted = host_replicas[rank].tensors[i];
        const float* got = gpu_replicas[rank]->tensor(i);
        ASSERT_TRUE(std::equal(wanted.begin(), wanted.end(), got))
            << "rank " << rank << ", tensor " << i;
      }
    }
  }

  Engine& engine(int rank) { return *gpu_world_.engines[rank]; }
  void turn() {
    gpu_world_.turn();
    gpu->run_some(random_, static_cast<int>(random_() % 12));
  }

  std::shared_ptr<FakeCuda> gpu = std::make_shared<FakeCuda>();
  std::vector<std::shared_ptr<CudaDevice>> devices;
  std::vector<std::unique_ptr<GpuReplica>> gpu_replicas;
  std::vector<Replica> host_replicas;

 private:
  void close() {
    std::vector<bool> mixed(gpu_replicas.size(), false);
    for (int turns = 0; turns < 200000; ++turns) {
      turn();
      for (size_t rank = 0; rank < mixed.size(); ++rank) {
        mixed[rank] =
            mixed[rank] || engine(static_cast<int>(rank))
                                   .close_round(0, gpu_replicas[rank]->addresses, 0.0,
                                                gpu_replicas[rank]->stream) == WaitStatus::kMixed;
      }
      if (std::all_of(mixed.begin(), mixed.end(), [](bool done) { return done; })) return;
    }
    throw std::runtime_error("the round did not end");
  }

  std::mt19937 random_;
  EngineWorld gpu_world_;
  EngineWorld host_world_;
};

TEST(CudaEngine, EqualsTheHostBitForBitOverHostTransports) {
  constexpr int kSize = 4;
  uint32_t seed = 0;
  for (const Medium medium : {Medium::kLocalWithFaults, Medium::kShared, Medium::kSocket}) {
    for (const Dtype wire : {Dtype::kFloat32, Dtype::kBfloat16}) {
      const std::shared_ptr<const Schedule> schedules[] = {
          crossover_schedule(kSize, 5), ring_schedule(kSize), complete_schedule(kSize),
          all_reduce_schedule(kSize), repeated_schedule(group_crossover_schedule(kSize, 3, 1), 2)};
      for (const auto& schedule : schedules) {
        TwoWorlds worlds(medium, kSize, ++seed);
        worlds.add_plan(small_plan(wire), schedule);
        for (uint64_t round = 0; round < 3; ++round) worlds.round(round);
        worlds.expect_equal();
      }
    }
  }
}

TEST(CudaEngine, CopiesSegmentsOfManyChunks) {
  TwoWorlds worlds(Medium::kSocket, 2, 1);
  worlds.add_plan(SegmentPlan({make_segment("a", {1500007, 3})}, Dtype::kFloat32, {0}),
                  ring_schedule(2));
  for (uint64_t round = 0; round < 2; ++round) worlds.round(round);
  worlds.expect_equal();
}

TEST(CudaEngine, MayBeWaitedForAgainAfterARefusedCapture) {
  TwoWorlds worlds(Medium::kLocal, 2, 1);
  worlds.add_plan(small_plan(), ring_schedule(2));
  const StreamHandle stream = worlds.gpu_replicas[0]->stream;
  worlds.gpu->set_capturing(stream, true);
  EXPECT_THROW(worlds.engine(0).open_round(0, worlds.gpu_replicas[0]->addresses,
                                           worlds.gpu_replicas[0]->stream),
               InvalidArgument);
  EXPECT_FALSE(worlds.engine(0).is_open(0));
  worlds.gpu->set_capturing(stream, false);
  for (int rank = 0; rank < 2; ++rank) {
    worlds.engine(rank).open_round(0, worlds.gpu_replicas[rank]->addresses,
                                   worlds.gpu_replicas[rank]->stream);
  }
  for (int turns = 0; turns < 2000; ++turns) worlds.turn();
  worlds.gpu->set_capturing(stream, true);
  EXPECT_THROW(worlds.engine(0).close_round(0, worlds.gpu_replicas[0]->addresses, 0.0,
                                            worlds.gpu_replicas[0]->stream),
               InvalidArgument);
  worlds.gpu->set_capturing(stream, false);
  EXPECT_EQ(worlds.engine(0).close_round(0, worlds.gpu_replicas[0]->addresses, 0.0,
                                         worlds.gpu_replicas[0]->stream),
            WaitStatus::kMixed);
}

TEST(CudaEngine, AFailedDeviceCallIsTheFirstCauseEverywhere) {
  TwoWorlds worlds(Medium::kLocal, 2, 1);
  worlds.add_plan(small_plan(), ring_schedule(2));
  worlds.turn();
  for (int rank = 0; rank < 2; ++rank) {
    worlds.engine(rank).open_round(0, worlds.gpu_replicas[rank]->addresses,
                                   worlds.gpu_replicas[rank]->stream);
  }
  worlds.gpu->fail_next("pack");
  for (int turns = 0; turns < 2000; ++turns) worlds.turn();
  for (int rank = 0; rank < 2; ++rank) {
    try {
      worlds.engine(rank).close_round(0, worlds.gpu_replicas[rank]->addresses, 0.0,
                                      worlds.gpu_replicas[rank]->stream);
      ADD_FAILURE() << "rank " << rank << " went on";
    } catch (const CrossoverError& error) {
      EXPECT_NE(std::string(error.what()).find("pack failed"), std::string::npos) << error.what();
    }
  }
}

TEST(CudaEngine, MayDropAPlanInMidRound) {
  TwoWorlds worlds(Medium::kLocal, 2, 1);
  worlds.add_plan(small_plan(), ring_schedule(2));
  worlds.engine(0).open_round(0, worlds.gpu_replicas[0]->addresses, worlds.gpu_replicas[0]->stream);
  worlds.turn();
  worlds.engine(0).remove_plan(0);
  worlds.turn();
  EXPECT_EQ(std::count(worlds.gpu->done().begin(), worlds.gpu->done().end(), "pack"), 3);
}

}  // namespace
}  // namespace crossover::testing
