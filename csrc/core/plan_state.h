// A plan inside the engine: what the training thread and the progress thread share per segment.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/buffer_pool.h"
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
  uint64_t round = 0;
  std::vector<void*> addresses;   // written while idle, read by the progress thread while posted
  std::shared_ptr<Fence> posted;  // likewise
  double wait_began_s = -1.0;
  double next_report_s = 0.0;

  // Whoever drives; the training thread while kMixing.
  std::unique_ptr<SegmentExchange> exchange;
};

/// Which segments of a plan with Rooms::kFew have room. In any round the first segment in issue
/// order that some rank has not mixed has room on every rank, so that it moves whatever the others
/// wait for.
class FewRooms {
 public:
  FewRooms(const SegmentPlan& plan, Device& device);
  BufferPool& pool() { return pool_; }
  /// The next segment in issue order, if its turn has come.
  std::optional<uint32_t> next(std::span<const SegmentState> segments) const;
  /// next() has got room for `bytes`.
  void give(uint64_t bytes);
  /// The first segment that had room is mixed, and prepared for its next round.
  void take_back();

 private:
  const SegmentPlan& plan_;
  const uint64_t budget_bytes_;
  BufferPool pool_;
  uint64_t given_ = 0;               // segments that were given room, over all rounds
  std::deque<uint64_t> held_bytes_;  // of those that are not mixed
  uint64_t total_held_bytes_ = 0;
};

struct PlanState {
  PlanState(uint32_t id, SegmentPlan plan, std::shared_ptr<const Schedule> schedule,
            std::shared_ptr<Device> device, uint64_t first_round, int rank,
            NonFinitePolicy non_finite, Rooms rooms);

  const uint32_t id;
  const SegmentPlan plan;
  const std::shared_ptr<const Schedule> schedule;
  const std::shared_ptr<Device> device;
  std::optional<FewRooms> few_rooms;  // whoever drives; none: Rooms::kAll
  std::vector<SegmentState> segments;
  bool removed = false;  // guarded by the engine's mutex: the progress thread has let go of it

  bool is_open() const;
  /// Throws InvalidArgument unless these can be the push-sum weights of the segments.
  void require_weights(std::span<const double> weights) const;
  /// Of the tensors of one segment, from those of all tensors of the plan.
  std::span<void* const> own_addresses(uint32_t segment, std::span<void* const> all) const {
    return all.subspan(plan.first_tensor(segment), plan.segment(segment).numels.size());
  }
  /// The first open segment in issue order, else the first of all. The plan has segments.
  uint32_t current_segment() const;
  /// "plan 1, round 118, segment 3 'fc' (send to 5, receive from 2)" for rank `rank`.
  std::string place(uint32_t segment, int rank) const;
};

/// "rank 2", "ranks 2 and 3": each once, in ascending order.
std::string spell_ranks(std::vector<int> ranks);

}  // namespace crossover
