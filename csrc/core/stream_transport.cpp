#include "core/stream_transport.h"

#include <algorithm>

#include "core/error.h"
#include "core/peer_channel.h"

namespace crossover {

StreamTransport::StreamTransport(const StreamConfig& config,
                                 std::vector<std::unique_ptr<Pipe>> pipes)
    : config_(config) {
  check(static_cast<int>(pipes.size()) == config.size, "one pipe per rank");
  channels_.resize(pipes.size());
  for (int peer = 0; peer < config.size; ++peer) {
    if (peer == config.rank) continue;
    check(pipes[peer] != nullptr, "a pipe to every peer");
    channels_[peer] = std::make_unique<PeerChannel>(config_, peer, std::move(pipes[peer]),
                                                    forgotten_plans_, counters_);
  }
}

StreamTransport::~StreamTransport() = default;

void StreamTransport::receive(int peer, const MessageTag& tag, MessageSink& sink, uint64_t token) {
  channels_.at(peer)->receive(tag, sink, token);
}

void StreamTransport::send(int peer, const MessageTag& tag, MessageSource& source, uint64_t token) {
  channels_.at(peer)->send(tag, source, token, num_posts_++);
}

void StreamTransport::forget_plan(uint32_t plan) {
  forgotten_plans_.insert(plan);
  for (const auto& channel : channels_) {
    if (channel) channel->forget_plan(plan);
  }
}

bool StreamTransport::progress(double now_s, std::vector<TransportEvent>& events) {
  const double gap_s = last_progress_s_ < 0 ? 0 : now_s - last_progress_s_;
  last_progress_s_ = now_s;
  give_turn(now_s);
  bool moved = false;
  for (const auto& channel : channels_) {
    if (!channel) continue;
    if (gap_s > config_.timeout_s / 2) channel->excuse(gap_s);
    moved = channel->progress(now_s, events) || moved;
  }
  return moved;
}

void StreamTransport::give_turn(double now_s) {
  const auto before = std::exchange(turn_, std::nullopt);
  for (const auto& channel : channels_) {
    if (!channel || !channel->crosses_network()) continue;
    const auto next = channel->next_to_leave();
    if (next && (!turn_ || *next < *turn_)) turn_ = next;
  }
  if (turn_ != before) turn_moved_s_ = now_s;
  const bool out_of_patience = turn_ && now_s - turn_moved_s_ >= kPatience_s;
  for (const auto& channel : channels_) {
    if (!channel || !channel->crosses_network()) continue;
    const bool has_turn = turn_ && channel->next_to_leave() == turn_;
    channel->hold(!has_turn && !out_of_patience);
  }
}

bool StreamTransport::prepare_to_sleep(double now_s, std::vector<PollItem>& items,
                                       double& max_sleep_s) {
  if (turn_)
    max_sleep_s = std::min(max_sleep_s, std::max(0.0, turn_moved_s_ + kPatience_s - now_s));
  bool may_sleep = true;
  for (const auto& channel : channels_) {
    if (channel) may_sleep = channel->prepare_to_sleep(now_s, items, max_sleep_s) && may_sleep;
  }
  return may_sleep;
}

void StreamTransport::say_farewell(const Farewell& farewell) {
  for (const auto& channel : channels_) {
    if (channel) channel->say_farewell(farewell);
  }
}

bool StreamTransport::drained() {
  for (const auto& channel : channels_) {
    if (channel && !channel->drained()) return false;
  }
  return true;
}

}  // namespace crossover
