#include "cuda/launch_queue.h"

#include <algorithm>
#include <utility>

namespace crossover {

uint64_t LaunchQueue::add(const QueuedTransfer& transfer) {
  const uint64_t id = next_id_++;
  transfers_.emplace(id, transfer);
  unposted_[transfer.tag].push_back(id);
  return id;
}

bool LaunchQueue::same_turn(const MessageTag& a, const MessageTag& b) {
  return a.plan == b.plan && a.segment == b.segment && a.round == b.round;
}

std::vector<uint64_t> LaunchQueue::post(const MessageTag& tag, bool last) {
  std::vector<uint64_t> ids;
  if (auto added = unposted_.extract(tag)) ids = std::move(added.mapped());
  auto turn = std::find_if(turns_.begin(), turns_.end(),
                           [&tag](const auto& entry) { return same_turn(entry.first, tag); });
  if (turn == turns_.end()) turn = turns_.insert(turns_.end(), {tag, Turn{}});
  turn->second.phases.push_back({tag, ids});
  turn->second.complete = last;
  skip_idle();
  return ids;
}

void LaunchQueue::agree(uint64_t id) {
  const auto found = transfers_.find(id);
  if (found != transfers_.end()) found->second.agreed = true;
}

void LaunchQueue::skip_idle() {
  while (!turns_.empty()) {
    Turn& turn = turns_.front().second;
    while (!turn.phases.empty() && turn.phases.front().ids.empty()) turn.phases.pop_front();
    if (!turn.phases.empty() || !turn.complete) return;
    turns_.pop_front();
  }
}

bool LaunchQueue::agreed(const Phase& phase) const {
  return std::all_of(phase.ids.begin(), phase.ids.end(),
                     [this](uint64_t id) { return transfers_.at(id).agreed; });
}

bool LaunchQueue::launchable() const {
  if (turns_.empty()) return false;
  const std::deque<Phase>& phases = turns_.front().second.phases;
  return !phases.empty() && agreed(phases.front());
}

std::vector<QueuedTransfer> LaunchQueue::take() {
  std::vector<QueuedTransfer> group;
  if (!launchable()) return group;
  std::deque<Phase>& phases = turns_.front().second.phases;
  for (const uint64_t id : phases.front().ids) {
    group.push_back(transfers_.extract(id).mapped());
  }
  phases.pop_front();
  skip_idle();
  return group;
}

void LaunchQueue::forget_plan(uint32_t plan) {
  std::erase_if(transfers_, [plan](const auto& entry) { return entry.second.tag.plan == plan; });
  std::erase_if(unposted_, [plan](const auto& entry) { return entry.first.plan == plan; });
  std::erase_if(turns_, [plan](const auto& entry) { return entry.first.plan == plan; });
  skip_idle();
}

bool LaunchQueue::awaits(int peer) const {
  return std::any_of(transfers_.begin(), transfers_.end(), [peer](const auto& entry) {
    return entry.second.peer == peer && entry.second.agreed;
  });
}

}  // namespace crossover
