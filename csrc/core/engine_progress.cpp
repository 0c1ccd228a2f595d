// The progress thread's half of the engine.
#include <algorithm>

#include "core/engine.h"
#include "core/plan_state.h"

namespace crossover {
namespace {

constexpr double kMaxSleep_s = 1.0;

}  // namespace

void Engine::say_farewell_if_due() {
  if (farewell_said_) return;
  Farewell farewell;
  {
    const std::lock_guard lock(mutex_);
    if (!failure_ && !shutting_down_) return;
    if (failure_) farewell = {true, failure_->origin, failure_->cause};
  }
  farewell_said_ = true;
  abandon_calls();
  if (farewell.failed) {
    for (const auto& device : devices_) device->cancel_mixes();
  }
  transport_->say_farewell(farewell);
}

void Engine::run() {
  std::vector<PollItem> items;
  try {
    for (;;) {
      const bool moved = progress_once();
      const double now_s = clock_.now_s();
      if (finished(now_s)) break;
      if (moved) continue;
      items.clear();
      double max_sleep_s = kMaxSleep_s;
      if (may_sleep(now_s, items, max_sleep_s)) poller_->wait(items, max_sleep_s);
    }
  } catch (const std::exception& error) {
    const std::lock_guard lock(mutex_);
    set_failure({ErrorKind::kTransport,
                 "rank " + std::to_string(config_.rank) + ": progress thread: " + error.what(),
                 config_.rank,
                 {}});
  }
  abandon_calls();
  const std::lock_guard lock(mutex_);
  progress_ended_ = true;
  changed_.notify_all();
}

bool Engine::may_sleep(double now_s, std::vector<PollItem>& items, double& max_sleep_s) {
  {
    const std::lock_guard lock(mutex_);
    if (!commands_.empty()) return false;
    asleep_ = true;
    if (shutting_down_) max_sleep_s = std::min(max_sleep_s, shutdown_deadline_s_ - now_s);
  }
  max_sleep_s = std::min(max_sleep_s, calls_.next_deadline_in_s(now_s));
  return transport_->prepare_to_sleep(now_s, items, max_sleep_s) && max_sleep_s > 0;
}

bool Engine::finished(double now_s) {
  {
    const std::lock_guard lock(mutex_);
    if (!shutting_down_) return false;
    if (now_s >= shutdown_deadline_s_) return true;
  }
  return farewell_said_ && transport_->drained();
}

bool Engine::progress_once() {
  const bool commanded = execute_commands();
  bool moved = false;
  const bool well = attempt([&] {
    say_farewell_if_due();
    for (const auto& device : devices_) device->poll();
    if (transport_->progress(clock_.now_s(), transport_events_)) {
      moved = true;
      publish_counters();
    }
  });
  const bool handled = handle_events();
  check_calls(clock_.now_s());
  return handled || moved || commanded || !well;
}

// What the outside world throws becomes this engine's failure; the progress thread goes on, to tell
// the others. False if something was thrown.
template <typename Call>
bool Engine::attempt(Call call) {
  const std::string place = "rank " + std::to_string(config_.rank) + ": ";
  std::optional<Failure> failure;
  try {
    call();
  } catch (const NonFiniteError& error) {
    failure = Failure{ErrorKind::kNonFinite, place + error.what(), config_.rank, {}};
  } catch (const InvalidArgument& error) {
    failure = Failure{ErrorKind::kInvalidArgument, place + error.what(), config_.rank, {}};
  } catch (const DeviceError& error) {
    failure = Failure{ErrorKind::kDevice, place + error.what(), config_.rank, {}};
  } catch (const TransportError& error) {
    failure = Failure{ErrorKind::kTransport, error.what(), config_.rank, {}};
  }
  if (!failure) return true;
  const std::lock_guard lock(mutex_);
  set_failure(std::move(*failure));
  return false;
}

// Before completions are handled, so that whoever saw a round end sees its bytes.
void Engine::publish_counters() {
  const std::lock_guard lock(mutex_);
  counters_ = transport_->counters();
}

bool Engine::execute_commands() {
  std::vector<Command> commands;
  {
    const std::lock_guard lock(mutex_);
    commands.swap(commands_);
    asleep_ = false;
  }
  for (const Command& command : commands) attempt([&] { execute(command); });
  return !commands.empty();
}

void Engine::execute(const Command& command) {
  switch (command.kind) {
    case Command::Kind::kLayer:
      transport_ = command.layer.make(std::move(transport_));
      break;
    case Command::Kind::kAdd:
      add(command.plan);
      break;
    case Command::Kind::kRemove:
      remove(command.plan);
      break;
    case Command::Kind::kPrepare:
      command.plan->segments[command.segment].exchange->prepare(command.round, *transport_,
                                                                operations_);
      break;
    case Command::Kind::kPost:
      begin(*command.plan, command.segment);
      break;
    case Command::Kind::kReportStall:
      report_stall(command);
      break;
    case Command::Kind::kCall:
      begin(command.call);
      break;
  }
}

void Engine::add(const std::shared_ptr<PlanState>& plan) {
  if (std::find(devices_.begin(), devices_.end(), plan->device) == devices_.end()) {
    plan->device->set_waker([this] { poller_->wake(); });
    devices_.push_back(plan->device);
  }
  for (SegmentState& segment : plan->segments) {
    segment.exchange->prepare(segment.round, *transport_, operations_);
  }
}

void Engine::remove(const std::shared_ptr<PlanState>& plan) {
  transport_->forget_plan(plan->id);
  plan->device->drain();
  for (SegmentState& segment : plan->segments) {
    operations_.drop(*segment.exchange);
    segment.exchange->release();
  }
  const std::lock_guard lock(mutex_);
  plan->removed = true;
  changed_.notify_all();
}

void Engine::begin(PlanState& plan, uint32_t index) {
  SegmentState& segment = plan.segments[index];
  record(EventKind::kSendBegun, *segment.exchange, {});
  if (segment.exchange->begin(segment.addresses, segment.posted, *transport_, operations_)) {
    arrive(*segment.exchange);
  }
  require_peers(*segment.exchange);
}

// Only the progress thread knows whom a segment still waits for: its sources, or a destination that
// has not made room.
void Engine::report_stall(const Command& command) {
  PlanState& plan = *command.plan;
  const SegmentState& state = plan.segments[command.segment];
  const std::string waited = spell_seconds(command.waited_s) + " for " +
                             spell_ranks(operations_.peers_of(*state.exchange)) +
                             ": alive, but not yet in this round";
  const std::lock_guard lock(mutex_);
  if (state.stage != Stage::kPosted || state.round != command.round) return;
  if (command.waited_s >= config_.stall_timeout_s) {
    set_failure({ErrorKind::kProgressTimeout,
                 "rank " + std::to_string(config_.rank) + " waited " + waited + " (stall_timeout)",
                 config_.rank,
                 {}});
    return;
  }
  warnings_.push_back(plan.place(command.segment, config_.rank) + ": has waited " + waited +
                      "; error after " + spell_seconds(config_.stall_timeout_s));
}

bool Engine::handle_events() {
  const bool any = !transport_events_.empty();
  for (const TransportEvent& event : transport_events_) {
    if (event.kind == TransportEvent::Kind::kPeerLeft) {
      on_peer_left(event);
    } else if (event.kind == TransportEvent::Kind::kPeerLost) {
      const std::lock_guard lock(mutex_);
      if (!shutting_down_) {
        set_failure({ErrorKind::kTransport, event.farewell.cause, config_.rank, {}});
      }
    } else {
      attempt([&] { complete(event); });
    }
  }
  transport_events_.clear();
  return any;
}

void Engine::complete(const TransportEvent& event) {
  if (CallTokens::owns(event.token)) {
    if (const auto call = calls_.on_complete(event.token, *transport_)) finish(*call);
    return;
  }
  const Operation operation = operations_.take(event.token);
  if (!operation.exchange) return;
  const bool sent = event.kind == TransportEvent::Kind::kSent;
  record(sent ? EventKind::kSent : EventKind::kReceived, *operation.exchange, operation);
  if (operation.exchange->on_complete(operation, *transport_, operations_)) {
    arrive(*operation.exchange);
  }
}

void Engine::arrive(const SegmentExchange& exchange) {
  record(EventKind::kArrived, exchange, {});
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<PlanState> plan = find_plan(exchange.context().plan_id);
  if (!plan) return;
  SegmentState& segment = plan->segments[exchange.context().segment];
  segment.stage = Stage::kArrived;
  if (segment.awaited) changed_.notify_all();
}

void Engine::on_peer_left(const TransportEvent& event) {
  if (event.farewell.failed) {
    const std::lock_guard lock(mutex_);
    set_failure({ErrorKind::kTransport, event.farewell.cause, event.farewell.origin,
                 "rank " + std::to_string(event.peer) + " stopped; first cause, seen by rank " +
                     std::to_string(event.farewell.origin) + ": "});
    return;
  }
  left_[event.peer] = true;
  any_left_ = true;
  require_peers_of_calls();
  std::vector<std::shared_ptr<PlanState>> plans;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, plan] : plans_) {
      if (plan) plans.push_back(plan);
    }
  }
  for (const auto& plan : plans) {
    for (const SegmentState& segment : plan->segments) require_peers(*segment.exchange);
  }
}

void Engine::require_peers(const SegmentExchange& exchange) {
  if (!any_left_ || !exchange.begun()) return;
  for (const int peer : operations_.peers_of(exchange)) {
    if (!left_[peer]) continue;
    const std::lock_guard lock(mutex_);
    set_failure({ErrorKind::kTransport,
                 "rank " + std::to_string(peer) + " has shut down, but rank " +
                     std::to_string(config_.rank) + " still exchanges with it",
                 config_.rank,
                 {}});
    return;
  }
}

void Engine::record(EventKind kind, const SegmentExchange& exchange, const Operation& operation) {
  events_.add({.time_s = clock_.now_s(),
               .round = exchange.round(),
               .bytes = operation.bytes,
               .plan = exchange.context().plan_id,
               .segment = exchange.context().segment,
               .phase = operation.phase,
               .peer = operation.peer,
               .kind = kind});
}

}  // namespace crossover
