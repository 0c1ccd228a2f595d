#include "core/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/plan_state.h"

namespace crossover {
namespace {

constexpr double kDestructorTimeout_s = 5.0;

void require_push_sum_works(const Schedule& schedule, bool carries_weights) {
  if (schedule.stochasticity() != Stochasticity::kColumn) return;
  const std::string given =
      "schedule '" + std::string(schedule.name()) + "' is column-stochastic (push-sum): ";
  if (!carries_weights) {
    throw InvalidArgument(given +
                          "its weights travel beside the messages, which NCCL allows with "
                          "NcclOptions(host_ready=True) only; or use transport='tcp' or 'shm'");
  }
  if (dynamic_cast<const PeerSchedule*>(&schedule) == nullptr) {
    throw InvalidArgument(given +
                          "expected rounds of one exchange each, got several exchanges a round "
                          "or exact averages among them");
  }
}

void require_segment(const PlanState& plan, uint32_t segment, size_t num_addresses,
                     const char* call) {
  if (segment < plan.segments.size() && num_addresses == plan.plan.segment(segment).numels.size()) {
    return;
  }
  throw InvalidArgument(std::string(call) + ": segment " + std::to_string(segment) + " of plan " +
                        std::to_string(plan.id) + " does not have " +
                        std::to_string(num_addresses) + " tensors");
}

}  // namespace

Engine::Engine(const EngineConfig& config, std::unique_ptr<Transport> transport,
               std::unique_ptr<Poller> poller, const Clock& clock)
    : config_(config),
      carries_weights_(transport && transport->carries_weights()),
      clock_(clock),
      events_(config.event_capacity),
      transport_(std::move(transport)),
      poller_(std::move(poller)),
      left_(config.size, false) {
  check(transport_ && poller_, "an engine has a transport and a poller");
}

Engine::~Engine() {
  if (abandoned_) {
    // The thread, the links and whoever held the mutex belong to the parent process.
    (void)thread_.release();
    (void)transport_.release();
    (void)poller_.release();
    return;
  }
  shutdown(kDestructorTimeout_s);
}

void Engine::start() {
  check(!thread_, "an engine is started once");
  thread_ = std::make_unique<std::jthread>([this] { run(); });
}

void Engine::check_not_forked() const {
  if (!abandoned_) return;
  throw InvalidArgument(
      "crossover_comm was used in a process forked after init(); its links belong to the parent");
}

void Engine::add_transport_layer(TransportLayer layer) {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  check_usable();
  if (!plans_.empty()) {
    throw InvalidArgument("add_transport_layer: expected an engine without plans, got one with " +
                          std::to_string(plans_.size()));
  }
  carries_weights_ = layer.carries_weights;
  commands_.push_back({.kind = Command::Kind::kLayer, .plan = nullptr, .layer = std::move(layer)});
  poller_->wake();
}

uint32_t Engine::add_plan(SegmentPlan plan, std::shared_ptr<const Schedule> schedule,
                          std::shared_ptr<Device> device, uint64_t first_round,
                          std::optional<NonFinitePolicy> non_finite, std::optional<uint32_t> id) {
  check_not_forked();
  if (schedule->size() != config_.size) {
    throw InvalidArgument("schedule '" + std::string(schedule->name()) + "': expected one for " +
                          std::to_string(config_.size) + " ranks, got one for " +
                          std::to_string(schedule->size()));
  }
  require_push_sum_works(*schedule, carries_weights_);
  const std::lock_guard lock(mutex_);
  check_usable();
  const uint32_t given = plan_id(id);
  const auto state = std::make_shared<PlanState>(given, std::move(plan), std::move(schedule),
                                                 std::move(device), first_round, config_.rank,
                                                 non_finite.value_or(config_.non_finite));
  plans_.emplace(given, state);
  commands_.push_back({Command::Kind::kAdd, state});
  poller_->wake();
  return given;
}

uint32_t Engine::plan_id(std::optional<uint32_t> chosen) {
  if (!chosen) return next_plan_++;
  if (*chosen < kFirstChosenPlan || plans_.contains(*chosen)) {
    throw InvalidArgument("add_plan: id: expected an unused one of at least " +
                          std::to_string(kFirstChosenPlan) + ", got " + std::to_string(*chosen));
  }
  return *chosen;
}

void Engine::remove_plan(uint32_t plan) {
  if (abandoned_) return;
  std::unique_lock lock(mutex_);
  const std::shared_ptr<PlanState> state = find_plan(plan);
  if (!state || over_) return;
  plans_[plan] = nullptr;
  commands_.push_back({Command::Kind::kRemove, state});
  poller_->wake();
  if (!thread_) return;
  changed_.wait(lock, [&] { return state->removed || progress_ended_; });
}

void Engine::check_usable() const {
  if (over_ || shutting_down_) throw InvalidArgument("the engine has been shut down");
}

std::shared_ptr<PlanState> Engine::find_plan(uint32_t plan) const {
  const auto found = plans_.find(plan);
  return found == plans_.end() ? nullptr : found->second;
}

std::shared_ptr<PlanState> Engine::usable_plan(uint32_t plan) const {
  std::shared_ptr<PlanState> found = find_plan(plan);
  if (!found) {
    throw InvalidArgument("plan " + std::to_string(plan) + ": no such plan in this engine");
  }
  if (!failure_) check_usable();
  return found;
}

void Engine::open_round(uint32_t plan, std::span<void* const> addresses, StreamHandle stream) {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<PlanState> state = usable_plan(plan);
  if (state->segments.empty()) return;
  raise_failure(*state, state->current_segment());
  if (addresses.size() != state->plan.num_tensors()) {
    throw InvalidArgument("open_round: expected " + std::to_string(state->plan.num_tensors()) +
                          " addresses, got " + std::to_string(addresses.size()));
  }
  if (state->is_open()) {
    throw InvalidArgument("open_round: plan " + std::to_string(plan) + " has an open round");
  }
  const std::shared_ptr<Fence> posted = state->device->fence(stream);
  for (const uint32_t index : state->plan.issue_order()) {
    post(state, index,
         addresses.subspan(state->plan.first_tensor(index),
                           state->plan.segment(index).numels.size()),
         posted);
  }
  wake_progress();
}

void Engine::open_segment(uint32_t plan, uint32_t segment, std::span<void* const> addresses,
                          StreamHandle stream) {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<PlanState> state = usable_plan(plan);
  require_segment(*state, segment, addresses.size(), "open_segment");
  raise_failure(*state, segment);
  if (state->segments[segment].stage != Stage::kIdle) {
    throw InvalidArgument("open_segment: segment " + std::to_string(segment) + " of plan " +
                          std::to_string(plan) + " is open");
  }
  post(state, segment, addresses, state->device->fence(stream));
  wake_progress();
}

void Engine::post(const std::shared_ptr<PlanState>& plan, uint32_t index,
                  std::span<void* const> addresses, const std::shared_ptr<Fence>& posted) {
  SegmentState& segment = plan->segments[index];
  segment.addresses.assign(addresses.begin(), addresses.end());
  segment.posted = posted;
  segment.stage = Stage::kPosted;
  segment.wait_began_s = -1.0;
  commands_.push_back({Command::Kind::kPost, plan, index, segment.round});
  record(EventKind::kPosted, *plan, index);
}

WaitStatus Engine::wait_segment(uint32_t plan, uint32_t segment, std::span<void* const> addresses,
                                double slice_s, StreamHandle stream) {
  check_not_forked();
  std::unique_lock lock(mutex_);
  const std::shared_ptr<PlanState> state = usable_plan(plan);
  require_segment(*state, segment, addresses.size(), "wait_segment");
  const WaitStatus status = wait_and_mix(lock, state, {segment, addresses, stream}, slice_s);
  wake_progress();
  return status;
}

WaitStatus Engine::wait_and_mix(std::unique_lock<std::mutex>& lock,
                                const std::shared_ptr<PlanState>& plan, const Destination& to,
                                double slice_s) {
  SegmentState& shared = plan->segments[to.segment];
  raise_failure(*plan, to.segment);
  if (shared.stage == Stage::kIdle) return WaitStatus::kMixed;
  shared.awaited = true;
  changed_.wait_for(lock, std::chrono::duration<double>(slice_s),
                    [&] { return shared.stage == Stage::kArrived || failure_ || shutting_down_; });
  shared.awaited = false;
  raise_failure(*plan, to.segment);
  check_usable();
  if (shared.stage != Stage::kArrived) {
    watch_stall(plan, to.segment);
    return WaitStatus::kPending;
  }
  shared.stage = Stage::kMixing;
  lock.unlock();
  record(EventKind::kMixBegun, *plan, to.segment);
  mix(shared, to.addresses, to.stream);
  record(EventKind::kMixed, *plan, to.segment);
  lock.lock();
  shared.stage = Stage::kIdle;
  ++shared.round;
  commands_.push_back({Command::Kind::kPrepare, plan, to.segment, shared.round});
  return WaitStatus::kMixed;
}

void Engine::mix(SegmentState& segment, std::span<void* const> addresses, StreamHandle stream) {
  try {
    segment.exchange->mix_into(addresses, stream);
  } catch (const InvalidArgument&) {
    const std::lock_guard lock(mutex_);
    segment.stage = Stage::kArrived;  // nothing was written: the wait may be tried again
    throw;
  } catch (const DeviceError& error) {
    fail(ErrorKind::kDevice, error.what());
    throw;
  }
}

WaitStatus Engine::close_round(uint32_t plan, std::span<void* const> addresses, double slice_s,
                               StreamHandle stream) {
  check_not_forked();
  std::unique_lock lock(mutex_);
  const std::shared_ptr<PlanState> state = usable_plan(plan);
  if (state->segments.empty()) return WaitStatus::kMixed;
  raise_failure(*state, state->current_segment());
  if (addresses.size() != state->plan.num_tensors()) {
    throw InvalidArgument("close_round: expected " + std::to_string(state->plan.num_tensors()) +
                          " addresses, got " + std::to_string(addresses.size()));
  }
  WaitStatus status = WaitStatus::kMixed;
  for (const uint32_t index : state->plan.issue_order()) {
    const auto own = addresses.subspan(state->plan.first_tensor(index),
                                       state->plan.segment(index).numels.size());
    status = wait_and_mix(lock, state, {index, own, stream}, slice_s);
    if (status == WaitStatus::kPending) break;
  }
  wake_progress();
  return status;
}

// Once for all commands until the progress thread takes them.
void Engine::wake_progress() {
  if (std::exchange(asleep_, false)) poller_->wake();
}

void Engine::watch_stall(const std::shared_ptr<PlanState>& plan, uint32_t segment) {
  SegmentState& state = plan->segments[segment];
  const double now_s = clock_.now_s();
  if (state.wait_began_s < 0) {
    state.wait_began_s = now_s;
    state.next_report_s = std::min(config_.stall_warning_s, config_.stall_timeout_s);
    return;
  }
  const double waited_s = now_s - state.wait_began_s;
  if (waited_s < state.next_report_s) return;
  state.next_report_s = std::min(2 * state.next_report_s, config_.stall_timeout_s);
  commands_.push_back({Command::Kind::kReportStall, plan, segment, state.round, waited_s});
  poller_->wake();
}

void Engine::raise_failure(const PlanState& plan, uint32_t segment) const {
  if (!failure_) return;
  throw_error(failure_->kind,
              plan.place(segment, config_.rank) + ": " + failure_->via + failure_->cause);
}

void Engine::check_failure() const {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  if (failure_) throw_error(failure_->kind, failure_->via + failure_->cause);
}

std::vector<std::string> Engine::take_warnings() {
  const std::lock_guard lock(mutex_);
  return std::exchange(warnings_, {});
}

TransportCounters Engine::counters() const {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  return counters_;
}

void Engine::fail(ErrorKind kind, const std::string& cause) {
  if (abandoned_) return;
  {
    const std::lock_guard lock(mutex_);
    if (over_) return;
    set_failure({kind, "rank " + std::to_string(config_.rank) + ": " + cause, config_.rank, {}});
  }
  poller_->wake();
}

void Engine::set_failure(Failure failure) {
  if (failure_ || over_) return;
  failure_ = std::move(failure);
  events_.add({.time_s = clock_.now_s(), .peer = failure_->origin, .kind = EventKind::kFailed});
  changed_.notify_all();
}

void Engine::shutdown(double timeout_s) {
  if (abandoned_) return;
  {
    const std::lock_guard lock(mutex_);
    if (over_) return;
    shutting_down_ = true;
    shutdown_deadline_s_ = clock_.now_s() + timeout_s;
    changed_.notify_all();
  }
  poller_->wake();
  if (thread_) {
    thread_->join();
  } else {
    progress_once();
  }
  const std::lock_guard lock(mutex_);
  if (over_) return;
  over_ = true;
  counters_ = transport_->counters();
  for (const auto& device : devices_) device->set_waker(nullptr);
  transport_.reset();
}

void Engine::record(EventKind kind, const PlanState& plan, uint32_t segment) {
  events_.add({.time_s = clock_.now_s(),
               .round = plan.segments[segment].round,
               .plan = plan.id,
               .segment = segment,
               .kind = kind});
}

}  // namespace crossover
