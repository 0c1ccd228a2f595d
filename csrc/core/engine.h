// One engine per process: many plans, one progress thread.
//
// The progress thread fills inboxes; whoever waits, mixes. A parameter is read from post to the end
// of its send and written only inside a wait of the training thread.
//
// Right:  open_round(p, x); ...; close_round(p, x)            or   open_round; wait_segment for each
// Wrong:  writing a parameter between open_round and the return of its wait.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/device.h"
#include "core/error.h"
#include "core/event.h"
#include "core/plan.h"
#include "core/poller.h"
#include "core/schedule.h"
#include "core/transport.h"

namespace crossover {

struct EngineConfig {
  int rank = 0;
  int size = 1;
  double stall_timeout_s = 1800.0;  // progress deadline: the peer lives but has not posted
  double stall_warning_s = 60.0;    // first warning of a long wait
  NonFinitePolicy non_finite = NonFinitePolicy::kRaise;
  size_t event_capacity = 0;
};

enum class WaitStatus { kMixed, kPending };

class PlanState;
class SegmentExchange;

/// Methods are called from one training thread at a time unless said otherwise. After the first
/// failure every call that posts or waits throws it again, with its own place.
class Engine {
 public:
  /// `clock` outlives the engine. With size 1 the transport may be null.
  Engine(const EngineConfig& config, std::unique_ptr<Transport> transport,
         std::unique_ptr<Poller> poller, const Clock& clock);
  /// Orderly shutdown, bounded by 5 s.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Starts the progress thread. Without it, tests call progress_once() themselves.
  void start();

  /// Registers a plan and announces room for its round `first_round`. Every rank adds the same
  /// plans in the same order; the returned ids agree. `device` and `schedule` are kept.
  uint32_t add_plan(SegmentPlan plan, std::shared_ptr<const Schedule> schedule,
                    std::shared_ptr<Device> device, uint64_t first_round);

  /// Drops a plan; what its peers still send for it is discarded.
  void remove_plan(uint32_t plan);

  /// Posts every segment. `addresses`: of all tensors of the plan in model order; the memory must
  /// stay valid and unwritten until the segment's wait returns. Throws InvalidArgument if a round of
  /// the plan is open.
  void open_round(uint32_t plan, std::span<void* const> addresses);

  /// Waits up to `slice_s` for one segment, then mixes it into `addresses` (the tensors of this
  /// segment alone) on the calling thread. kPending: not there yet, call again. kMixed at once if
  /// the segment is not open.
  WaitStatus wait_segment(uint32_t plan, uint32_t segment, std::span<void* const> addresses,
                          double slice_s);

  /// wait_segment for every open segment of the plan in issue order, all in one `slice_s`.
  WaitStatus close_round(uint32_t plan, std::span<void* const> addresses, double slice_s);

  /// The next round to be opened for a segment, or the open one.
  uint64_t round(uint32_t plan, uint32_t segment) const;
  /// True while any segment of the plan is posted and not mixed.
  bool is_open(uint32_t plan) const;

  /// Warnings of long waits since the last call.
  std::vector<std::string> take_warnings();

  /// Says farewell, sends what is under way, joins the progress thread; at most `timeout_s`.
  /// Idempotent. Any thread.
  void shutdown(double timeout_s);
  /// Records a failure of the caller's own (a Python exception, say) so that the others learn it.
  void fail(ErrorKind kind, const std::string& cause);
  /// In a forked child: the engine is dead and owns nothing any more.
  void abandon_after_fork() noexcept;

  TransportCounters counters() const;
  const EventRing& events() const { return events_; }

  /// One turn of the progress thread: commands, transport, completions. True if anything moved.
  bool progress_once();

 private:
  struct Command;
  struct Failure {
    ErrorKind kind;
    std::string cause;
    int origin;
  };

  void run(const std::stop_token& stop);
  void push(Command command);
  bool take_commands();
  void execute(const Command& command);
  void handle(const TransportEvent& event);
  void on_peer_gone(const TransportEvent& event);
  void complete(uint64_t token);
  void note_arrival(SegmentExchange& exchange);
  void require_peers(const SegmentExchange& exchange);
  void set_failure(ErrorKind kind, const std::string& cause, int origin);
  void say_farewell_if_due();
  [[noreturn]] void raise(const PlanState& plan, uint32_t segment) const;
  PlanState& plan_state(uint32_t plan) const;
  bool watch_stall(PlanState& plan, uint32_t segment);
  void record(EventKind kind, const SegmentExchange& exchange, int peer, uint64_t bytes);

  const EngineConfig config_;
  const Clock& clock_;
  const std::unique_ptr<Poller> poller_;
  EventRing events_;

  // --- progress thread only
  const std::unique_ptr<Transport> transport_;
  std::vector<TransportEvent> arrived_events_;
  std::vector<std::optional<Farewell>> left_;  // per peer: it has said farewell
  bool farewell_said_ = false;

  // --- guarded by mutex_
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<PlanState>> plans_;
  std::vector<Command> commands_;
  std::optional<Failure> failure_;
  std::vector<std::string> warnings_;
  TransportCounters counters_;
  bool shutting_down_ = false;
  bool progress_ended_ = false;

  std::unique_ptr<std::jthread> thread_;
};

}  // namespace crossover
