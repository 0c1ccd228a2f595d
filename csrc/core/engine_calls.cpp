// The engine's half of collectives: the caller's side and the progress thread's.
#include <chrono>
#include <utility>

#include "core/engine.h"
#include "core/plan_state.h"

namespace crossover {

// ---------------------------------------------------------------------------------------------
// any thread

std::shared_ptr<Call> Engine::start_call(CallProgram program, double timeout_s) {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  raise_call_failure(program.signature.describe());
  check_usable();
  const auto call = std::make_shared<Call>(next_call_++, std::move(program), timeout_s,
                                           clock_.now_s() + timeout_s);
  commands_.push_back({.kind = Command::Kind::kCall, .plan = nullptr, .call = call});
  poller_->wake();
  return call;
}

bool Engine::wait_call(const Call& call, double slice_s) {
  check_not_forked();
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::duration<double>(slice_s),
                    [&] { return call.is_done || calls_over_; });
  if (call.is_done) return true;
  if (!calls_over_) return false;
  raise_call_failure(call.program().signature.describe());
  throw InvalidArgument(call.program().signature.describe() +
                        ": the group was shut down before it was complete");
}

bool Engine::is_over(const Call& call) const {
  const std::lock_guard lock(mutex_);
  return call.is_done || calls_over_;
}

void Engine::watch_call(Call& call) {
  const std::lock_guard lock(mutex_);
  if (std::exchange(call.is_watched, true) || !call.is_done) return;
  watched_done_.push_back(call.id());
  changed_.notify_all();
}

std::vector<uint64_t> Engine::wait_watched(double slice_s) {
  check_not_forked();
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::duration<double>(slice_s),
                    [&] { return !watched_done_.empty() || calls_over_; });
  if (!watched_done_.empty()) return std::exchange(watched_done_, {});
  if (!calls_over_) return {};
  raise_call_failure("collectives under way");
  throw InvalidArgument("collectives under way: the group was shut down before they were complete");
}

void Engine::raise_call_failure(const std::string& place) const {
  if (failure_) throw_error(failure_->kind, place + ": " + failure_->via + failure_->cause);
}

// ---------------------------------------------------------------------------------------------
// progress thread

void Engine::begin(const std::shared_ptr<Call>& call) {
  if (farewell_said_) return;  // abandoned already, and its memory perhaps freed
  if (calls_.begin(call, *transport_)) finish(*call);
  if (any_left_) require_peers_of_calls();
}

void Engine::finish(Call& call) {
  const std::lock_guard lock(mutex_);
  call.is_done = true;
  if (call.is_watched) watched_done_.push_back(call.id());
  changed_.notify_all();
}

// Before anyone learns of it: who does may free the memory.
void Engine::abandon_calls() {
  if (transport_) calls_.abandon(*transport_);
  const std::lock_guard lock(mutex_);
  calls_over_ = true;
  changed_.notify_all();
}

void Engine::check_calls(double now_s) {
  const Call* call = calls_.overdue(now_s);
  if (!call) return;
  const std::lock_guard lock(mutex_);
  set_failure({ErrorKind::kProgressTimeout,
               call->describe() + ": rank " + std::to_string(config_.rank) + " waited " +
                   spell_seconds(call->timeout_s()) + " for " + spell_ranks(call->absent_peers()) +
                   ": alive, but not in this call, or in another one",
               config_.rank,
               {}});
}

void Engine::require_peers_of_calls() {
  for (size_t peer = 0; peer < left_.size(); ++peer) {
    if (!left_[peer]) continue;
    const Call* call = calls_.waiting_for(static_cast<int>(peer));
    if (!call) continue;
    const std::lock_guard lock(mutex_);
    set_failure({ErrorKind::kTransport,
                 call->describe() + ": rank " + std::to_string(peer) + " has shut down, but rank " +
                     std::to_string(config_.rank) + " still waits for it",
                 config_.rank,
                 {}});
    return;
  }
}

}  // namespace crossover
