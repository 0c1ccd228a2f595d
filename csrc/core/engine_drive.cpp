// A round that the waiting thread drives itself: no thread has to be woken for what arrives.
#include <algorithm>
#include <thread>

#include "core/engine.h"
#include "core/plan_state.h"

namespace crossover {
namespace {

constexpr double kLongestSpin_s = 50e-6;  // about what a sleep and its wake-up cost
constexpr double kLongYield_s = 5e-6;     // somebody else had the core meanwhile

/// Spins for a moment where nobody else wants the core, else not at all.
class Spin {
 public:
  explicit Spin(const Clock& clock) : clock_(clock) {}
  void restart() { began_s_ = -1.0; }
  /// Yields once. False when it is time to sleep.
  bool once() {
    const double now_s = clock_.now_s();
    if (began_s_ < 0) began_s_ = now_s;
    if (now_s - began_s_ >= kLongestSpin_s) return false;
    std::this_thread::yield();
    if (clock_.now_s() - now_s >= kLongYield_s) began_s_ = now_s - kLongestSpin_s;
    return true;
  }

 private:
  const Clock& clock_;
  double began_s_ = -1.0;
};

/// Lets the open segments of a plan be mixed as they arrive, until it goes.
class MixPermission {
 public:
  MixPermission(PlanState& plan, std::span<void* const> addresses) : plan_(plan) {
    for (uint32_t index = 0; index < plan.segments.size(); ++index) {
      if (plan.segments[index].stage == Stage::kIdle) continue;
      plan.segments[index].exchange->allow_mixing(plan.own_addresses(index, addresses));
    }
  }
  ~MixPermission() {
    for (const SegmentState& segment : plan_.segments) segment.exchange->forbid_mixing();
  }
  MixPermission(const MixPermission&) = delete;
  MixPermission& operator=(const MixPermission&) = delete;

 private:
  PlanState& plan_;
};

}  // namespace

/// The progress thread's seat, for a caller; without such a thread it is free.
class Engine::Seat {
 public:
  explicit Seat(Engine& engine) : engine_(engine) {
    ++engine.num_driving_callers_;
    engine.poller_->wake();
    held_ = std::unique_lock(engine.driving_);
  }
  ~Seat() {
    --engine_.num_driving_callers_;
    held_.unlock();
    engine_.seat_is_free_.notify_one();
  }
  Seat(const Seat&) = delete;
  Seat& operator=(const Seat&) = delete;

 private:
  Engine& engine_;
  std::unique_lock<std::mutex> held_;
};

WaitStatus Engine::drive_round(const std::shared_ptr<PlanState>& plan,
                               std::span<void* const> addresses, double slice_s) {
  if (!is_open(plan->id)) return WaitStatus::kMixed;
  const Seat seat(*this);
  const MixPermission permission(*plan, addresses);
  const double until_s = clock_.now_s() + slice_s;
  Spin spin(clock_);
  for (;;) {
    bool moved = progress_once();
    const double left_s = until_s - clock_.now_s();
    stall_or_raise(plan, !moved && left_s <= 0);
    moved = mix_arrived(*plan, addresses) || moved;
    if (!is_open(plan->id)) return WaitStatus::kMixed;
    if (moved) {
      spin.restart();
    } else if (left_s <= 0) {
      return WaitStatus::kPending;
    } else if (!spin.once()) {
      sleep_if_idle(left_s);
    }
  }
}

void Engine::stall_or_raise(const std::shared_ptr<PlanState>& plan, bool is_late) {
  const std::lock_guard lock(mutex_);
  const uint32_t segment = plan->current_segment();
  raise_failure(*plan, segment);
  check_usable();
  if (is_late && plan->segments[segment].stage == Stage::kPosted) watch_stall(plan, segment);
}

/// In issue order; true if there was any.
bool Engine::mix_arrived(PlanState& plan, std::span<void* const> addresses) {
  bool any = false;
  for (const uint32_t index : plan.plan.issue_order()) {
    SegmentState& segment = plan.segments[index];
    {
      const std::lock_guard lock(mutex_);
      if (segment.stage == Stage::kIdle) continue;
      if (segment.stage != Stage::kArrived) break;
      segment.stage = Stage::kMixing;
    }
    record(EventKind::kMixBegun, plan, index);
    mix(segment, plan.own_addresses(index, addresses), 0);
    record(EventKind::kMixed, plan, index);
    {
      const std::lock_guard lock(mutex_);
      segment.stage = Stage::kIdle;
      ++segment.round;
    }
    attempt([&] { prepare(plan, index, segment.round); });
    any = true;
  }
  return any;
}

}  // namespace crossover
