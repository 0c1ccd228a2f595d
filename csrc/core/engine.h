// One engine per process: many plans, one progress thread.
//
// The progress thread fills inboxes; whoever waits, mixes. A parameter is read from its post to the
// end of its send and written only inside a wait of the training thread.
//
// Right:  open_round(p, x); ...; close_round(p, x)      or  open_round; wait_segment for each
// segment Wrong:  writing a parameter between open_round and the return of its wait.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/call.h"
#include "core/clock.h"
#include "core/device.h"
#include "core/error.h"
#include "core/event.h"
#include "core/plan.h"
#include "core/poller.h"
#include "core/schedule.h"
#include "core/segment_exchange.h"
#include "core/transport.h"

namespace crossover {

struct EngineConfig {
  int rank = 0;
  int size = 1;
  double stall_timeout_s = 1800.0;  // progress deadline: the peer lives but has not posted
  double stall_warning_s = 60.0;    // first warning of a long wait; then at twice the time, ...
  NonFinitePolicy non_finite = NonFinitePolicy::kRaise;
  size_t event_capacity = 0;
};

/// Ids from here on are chosen by the caller of add_plan.
inline constexpr uint32_t kFirstChosenPlan = uint32_t{1} << 31;

enum class WaitStatus { kMixed, kPending };

struct PlanState;
struct SegmentState;

/// Posting and waiting calls come from one training thread at a time. After the first failure every
/// one of them throws it again, with its own place. Other calls may come from any thread.
class Engine {
 public:
  /// `clock` outlives the engine.
  Engine(const EngineConfig& config, std::unique_ptr<Transport> transport,
         std::unique_ptr<Poller> poller, const Clock& clock);
  /// shutdown(5 s), unless it is over already.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Starts the progress thread. Tests leave it out and call progress_once() themselves.
  void start();

  /// Replaces the transport by what `layer` makes of it on the progress thread: links that stand
  /// then carry what the layer leaves to them. Before the first plan, else InvalidArgument.
  void add_transport_layer(TransportLayer layer);

  /// Registers a plan and announces room for its round `first_round`. `schedule` is for config.size
  /// ranks; a column-stochastic one needs a transport that carries weights. `non_finite`: for this
  /// plan alone; none: as configured. `id` names the plan in messages, so that it is the same on
  /// all ranks that exchange for it. None: the next of 0, 1, 2, ..., for plans that every rank adds
  /// in the same order. Else one that this rank has not used, at least kFirstChosenPlan.
  uint32_t add_plan(SegmentPlan plan, std::shared_ptr<const Schedule> schedule,
                    std::shared_ptr<Device> device, uint64_t first_round,
                    std::optional<NonFinitePolicy> non_finite = {},
                    std::optional<uint32_t> id = {});

  /// Drops a plan, open or not; what peers still send for it is discarded. When it returns nothing
  /// reads the plan's tensors any more (without a progress thread: after its next turn).
  void remove_plan(uint32_t plan);

  /// Posts every segment. `addresses`: of all tensors of the plan in model order; the memory stays
  /// valid and unwritten until the segment's wait returns. `stream`: the one that wrote them last,
  /// if the device has streams. InvalidArgument if a round is open.
  void open_round(uint32_t plan, std::span<void* const> addresses, StreamHandle stream = 0);

  /// Posts one segment, with the addresses of its tensors alone; the segments of a round may be
  /// posted in any order and at any time. With a transport that launches in the order of posting
  /// that order is the same on every rank. InvalidArgument if the segment is open.
  void open_segment(uint32_t plan, uint32_t segment, std::span<void* const> addresses,
                    StreamHandle stream = 0);

  /// Waits up to `slice_s` for one segment, then mixes it into `addresses` (the tensors of this
  /// segment) on the calling thread; a device with streams does so on `stream`, the one that uses
  /// them next. kPending: not there yet, call again. kMixed at once if the segment is not open.
  WaitStatus wait_segment(uint32_t plan, uint32_t segment, std::span<void* const> addresses,
                          double slice_s, StreamHandle stream = 0);

  /// wait_segment for every open segment in issue order, at most `slice_s` of waiting for each.
  WaitStatus close_round(uint32_t plan, std::span<void* const> addresses, double slice_s,
                         StreamHandle stream = 0);

  /// The open round of a segment, or the next one.
  uint64_t round(uint32_t plan, uint32_t segment) const;
  /// From the next round on segments are posted and awaited in this order, which is the same on
  /// every rank if the transport launches in the order of posting. Training thread. InvalidArgument
  /// if a round is open, or unless it is a permutation of the segments.
  void set_issue_order(uint32_t plan, std::vector<uint32_t> order);
  /// True while a segment of the plan is posted and not mixed.
  bool is_open(uint32_t plan) const;

  /// Push-sum's w of every segment in model order, as of its last mix; 1 with other schedules.
  /// Training thread.
  std::vector<double> weights(uint32_t plan) const;
  /// Takes the weights up again where weights() had left them. Training thread. InvalidArgument if
  /// a round is open, or unless there is one finite weight > 0 per segment, 1 without push-sum.
  void set_weights(uint32_t plan, std::span<const double> weights);

  /// What the last mixed round of every segment in model order has found, see Program::wire; zeros
  /// if nothing was measured. Training thread. InvalidArgument if a round is open.
  std::vector<Difference> differences(uint32_t plan) const;

  /// Starts a collective or a message between two ranks: the program's memory is lent to it until
  /// it is complete, or until a failure has been thrown by wait_call() or wait_watched().
  /// Collectives are the same on every rank, in the same order; at most one thread at a time starts
  /// them. Any number may be under way. ProgressTimeout is this engine's failure if one is not
  /// complete after `timeout_s`.
  std::shared_ptr<Call> start_call(CallProgram program, double timeout_s);
  /// Waits up to `slice_s`. True: it is complete. Throws the engine's failure if it never will be.
  bool wait_call(const Call& call, double slice_s);
  /// True if it is complete, or will never be.
  bool is_over(const Call& call) const;
  /// From now on wait_watched() tells of it.
  void watch_call(Call& call);
  /// The ids of watched calls that have become complete; waits up to `slice_s` for the first.
  /// Throws the engine's failure: no watched call of which it has not told will be complete.
  std::vector<uint64_t> wait_watched(double slice_s);

  /// Warnings of long waits since the last call.
  std::vector<std::string> take_warnings();

  /// Raises the first failure, if there is one, for a caller that waits for something else.
  void check_failure() const;

  /// Records a failure of the caller's own (a Python exception, say) so that the others learn it.
  void fail(ErrorKind kind, const std::string& cause);

  /// Says farewell, lets what is under way leave, ends the progress thread, closes all links; at
  /// most `timeout_s`. Idempotent. Without a progress thread it takes one last turn.
  void shutdown(double timeout_s);

  /// In a forked child: the engine is dead there and owns nothing any more.
  void abandon_after_fork() noexcept { abandoned_ = true; }

  TransportCounters counters() const;
  const EventRing& events() const { return events_; }

  /// One turn of the progress thread: commands, transport, completions. True if anything moved.
  bool progress_once();

 private:
  struct Command {
    enum class Kind { kLayer, kAdd, kRemove, kPost, kPrepare, kReportStall, kCall } kind;
    std::shared_ptr<PlanState> plan;
    uint32_t segment = 0;
    uint64_t round = 0;
    double waited_s = 0.0;
    TransportLayer layer = {};
    std::shared_ptr<Call> call = nullptr;
  };
  struct Destination {  // of a mix
    uint32_t segment;
    std::span<void* const> addresses;
    StreamHandle stream;
  };
  struct Failure {
    ErrorKind kind;
    std::string cause;
    int origin;
    std::string via;  // who told it, if it was not seen here
  };

  void run();
  bool may_sleep(double now_s, std::vector<PollItem>& items, double& max_sleep_s);
  bool finished(double now_s);
  bool execute_commands();
  void execute(const Command& command);
  void add(const std::shared_ptr<PlanState>& plan);
  void remove(const std::shared_ptr<PlanState>& plan);
  void begin(PlanState& plan, uint32_t segment);
  void report_stall(const Command& command);
  void begin(const std::shared_ptr<Call>& call);
  void finish(Call& call);
  void abandon_calls();
  void check_calls(double now_s);
  void require_peers_of_calls();
  template <typename Call>
  bool attempt(Call call);
  bool handle_events();
  void complete(const TransportEvent& event);
  void publish_counters();
  void on_peer_left(const TransportEvent& event);
  void require_peers(const SegmentExchange& exchange);
  void arrive(const SegmentExchange& exchange);
  void set_failure(Failure failure);
  void say_farewell_if_due();
  void mix(SegmentState& segment, std::span<void* const> addresses, StreamHandle stream);

  void post(const std::shared_ptr<PlanState>& plan, uint32_t segment,
            std::span<void* const> addresses,
            const std::shared_ptr<Fence>& posted);                             // mutex_ held
  uint32_t plan_id(std::optional<uint32_t> chosen);                            // mutex_ held
  std::shared_ptr<PlanState> find_plan(uint32_t plan) const;                   // mutex_ held
  std::shared_ptr<PlanState> usable_plan(uint32_t plan) const;                 // mutex_ held
  void check_usable() const;                                                   // mutex_ held
  void raise_call_failure(const std::string& place) const;                     // mutex_ held
  void raise_failure(const PlanState& plan, uint32_t segment) const;           // mutex_ held
  void watch_stall(const std::shared_ptr<PlanState>& plan, uint32_t segment);  // mutex_ held
  // `lock` holds mutex_, and lets go of it to wait and to mix.
  WaitStatus wait_and_mix(std::unique_lock<std::mutex>& lock,
                          const std::shared_ptr<PlanState>& plan, const Destination& to,
                          double slice_s);
  void wake_progress();  // mutex_ held
  void record(EventKind kind, const PlanState& plan, uint32_t segment);
  void record(EventKind kind, const SegmentExchange& exchange, const Operation& operation);
  void check_not_forked() const;

  const EngineConfig config_;
  bool carries_weights_;  // training thread
  const Clock& clock_;
  EventRing events_;
  std::atomic<bool> abandoned_{false};

  // Progress thread.
  std::unique_ptr<Transport> transport_;
  std::unique_ptr<Poller> poller_;  // wake() from any thread
  OperationTable operations_;
  CallTable calls_;
  std::vector<TransportEvent> transport_events_;
  std::vector<bool> left_;  // per peer: it said an orderly farewell
  bool any_left_ = false;
  std::vector<std::shared_ptr<Device>> devices_;  // of all plans so far, each once
  bool farewell_said_ = false;

  // Guarded by mutex_.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint32_t, std::shared_ptr<PlanState>> plans_;  // null: removed
  uint32_t next_plan_ = 0;
  std::vector<Command> commands_;
  bool asleep_ = false;  // the progress thread, or it is about to be: commands have to wake it
  uint64_t next_call_ = 0;
  std::vector<uint64_t> watched_done_;  // ids of watched calls that wait_watched() has not told
  bool calls_over_ = false;             // none will be complete any more, their memory is let go
  std::optional<Failure> failure_;
  std::vector<std::string> warnings_;
  TransportCounters counters_;
  bool shutting_down_ = false;
  double shutdown_deadline_s_ = 0.0;
  bool progress_ended_ = false;
  bool over_ = false;

  std::unique_ptr<std::jthread> thread_;
};

}  // namespace crossover
