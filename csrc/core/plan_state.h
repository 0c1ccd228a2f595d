// A plan inside the engine: what the training thread and the progress thread share per segment.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "core/segment_exchange.h"

namespace crossover {

/// Of one segment in one round.
enum class Stage {
  kIdle,     // nothing is posted
  kPosted,   // handed to the progress thread, exchanging
  kArrived,  // everything it needs is there
  kMixing,   // the training thread writes the tensors
};

struct SegmentState {
  // Guarded by the engine's mutex.
  Stage stage = Stage::kIdle;
  bool awaited = false;  // by the training thread, now
  uint64_t round = 0;
  std::vector<void*> addresses;   // written while idle, read by the progress thread while posted
  std::shared_ptr<Fence> posted;  // likewise
  double wait_began_s = -1.0;
  double next_report_s = 0.0;

  // Progress thread; the training thread while kMixing.
  std::unique_ptr<SegmentExchange> exchange;
};

struct PlanState {
  PlanState(uint32_t id, SegmentPlan plan, std::shared_ptr<const Schedule> schedule,
            std::shared_ptr<Device> device, uint64_t first_round, int rank,
            NonFinitePolicy non_finite);

  const uint32_t id;
  SegmentPlan plan;  // its issue order is guarded by the engine's mutex, the rest is constant
  const std::shared_ptr<const Schedule> schedule;
  const std::shared_ptr<Device> device;
  std::vector<SegmentState> segments;
  bool removed = false;  // guarded by the engine's mutex: the progress thread has let go of it

  bool is_open() const;
  /// Throws InvalidArgument unless these can be the push-sum weights of the segments.
  void require_weights(std::span<const double> weights) const;
  /// The first open segment in issue order, else the first of all. The plan has segments.
  uint32_t current_segment() const;
  /// "plan 1, round 118, segment 3 'fc' (send to 5, receive from 2)" for rank `rank`.
  std::string place(uint32_t segment, int rank) const;
};

/// "rank 2", "ranks 2 and 3": each once, in ascending order.
std::string spell_ranks(std::vector<int> ranks);

}  // namespace crossover
