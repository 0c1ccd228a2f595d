#include "core/stream_transport.h"

#include <algorithm>
#include <tuple>

#include "core/error.h"
#include "core/peer_channel.h"

namespace crossover {
namespace {

constexpr double kLookAgain_s = 0.001;

}  // namespace

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
  departures_.clear();
  size_t backlog_bytes = 0;
  for (const auto& channel : channels_) {
    if (!channel || !channel->crosses_network()) continue;
    channel->give_turn(std::nullopt);
    channel->list_departures(departures_);
    backlog_bytes += channel->bytes_before_link(now_s);
  }
  waits_for_link_ = !departures_.empty() && backlog_bytes >= kLinkBacklogBytes;
  if (departures_.empty() || waits_for_link_) return;
  const size_t abreast = std::min(kAbreast, departures_.size());
  const auto newest = departures_.begin() + static_cast<std::ptrdiff_t>(abreast) - 1;
  std::ranges::nth_element(departures_, newest, {}, &Departure::order);
  const auto next = std::min_element(
      departures_.begin(), newest + 1, [](const Departure& one, const Departure& other) {
        return std::tie(one.share, one.order) < std::tie(other.share, other.order);
      });
  next->channel->give_turn(next->order);
}

// The system tells when one socket has room, not when the link has: that has to be looked up.
bool StreamTransport::prepare_to_sleep(double now_s, std::vector<PollItem>& items,
                                       double& max_sleep_s) {
  if (waits_for_link_) max_sleep_s = std::min(max_sleep_s, kLookAgain_s);
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
