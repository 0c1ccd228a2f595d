#include "core/peer_channel.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "core/clock.h"
#include "core/error.h"

namespace crossover {
namespace {

constexpr size_t kMinPayloadBytes = size_t{32}
                                    << 10;  // smaller data frames only at a message's end
constexpr size_t kMaxTurnBytes = size_t{128} << 10;
constexpr size_t kMaxCauseBytes = 2000;
constexpr size_t kMaxReadyAhead = 1 << 20;
constexpr uint16_t kFailedFlag = 1;
constexpr double kHeartbeatsPerTimeout = 4.0;

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

}  // namespace

std::string describe(const MessageTag& tag) {
  if (tag.plan == kCollectivePlan) {
    return "collective " + std::to_string(tag.round) + ", message " + std::to_string(tag.segment);
  }
  if (tag.plan == kPointToPointPlan) {
    return "message " + std::to_string(tag.round) + " with tag " + std::to_string(tag.segment);
  }
  return "plan " + std::to_string(tag.plan) + ", round " + std::to_string(tag.round) +
         ", segment " + std::to_string(tag.segment) + ", phase " + std::to_string(tag.phase);
}

PeerChannel::PeerChannel(const StreamConfig& config, int peer, std::unique_ptr<Pipe> pipe,
                         const std::set<uint32_t>& forgotten_plans, TransportCounters& counters)
    : config_(config),
      peer_(peer),
      pipe_(std::move(pipe)),
      forgotten_plans_(forgotten_plans),
      counters_(counters) {
  check(pipe_->min_capacity() >= kHeaderBytes + kMaxFramePayloadBytes, "a frame fits into a pipe");
}

void PeerChannel::receive(const MessageTag& tag, MessageSink& sink, uint64_t token) {
  const bool added = expected_.emplace(tag, Expected{&sink, token, 0}).second;
  check(added, "a tag is expected once");
  queue_control(FrameKind::kReady, tag, sink.num_bytes());
}

void PeerChannel::send(const MessageTag& tag, MessageSource& source, uint64_t token,
                       uint64_t order) {
  const Outgoing message{tag, &source, token, order, 0};
  const auto announced = ready_.find(tag);
  if (announced == ready_.end()) {
    waiting_.emplace(tag, message);
    return;
  }
  if (announced->second != source.num_bytes()) {
    throw InvalidArgument(describe(tag) + ": rank " + std::to_string(peer_) + " has room for " +
                          std::to_string(announced->second) + " bytes, this rank sends " +
                          std::to_string(source.num_bytes()) + "; the plans or calls differ");
  }
  ready_.erase(announced);
  active_.push_back(message);
}

void PeerChannel::forget_plan(uint32_t plan) {
  const auto of_plan = [plan](const auto& entry) { return entry.first.plan == plan; };
  std::erase_if(expected_, of_plan);
  std::erase_if(ready_, of_plan);
  std::erase_if(waiting_, of_plan);
  std::erase_if(active_, [plan](const Outgoing& message) { return message.tag.plan == plan; });
  held_up_.reset();
}

void PeerChannel::say_farewell(const Farewell& farewell) {
  if (ending_ != Ending::kNone) return;
  ending_ = Ending::kQueued;
  ControlFrame frame{header(FrameKind::kFarewell, {}, static_cast<uint64_t>(farewell.origin)), {}};
  frame.header.flags = farewell.failed ? kFailedFlag : 0;
  frame.payload = farewell.cause.substr(0, kMaxCauseBytes);
  frame.header.length = static_cast<uint32_t>(frame.payload.size());
  if (farewell.failed) {
    active_.clear();
    held_up_.reset();
  }
  farewell_ = std::move(frame);
}

FrameHeader PeerChannel::header(FrameKind kind, const MessageTag& tag, uint64_t offset) const {
  FrameHeader made;
  made.kind = kind;
  made.epoch = config_.epoch;
  made.incarnation = config_.incarnation;
  made.tag = tag;
  made.offset = offset;
  return made;
}

void PeerChannel::queue_control(FrameKind kind, const MessageTag& tag, uint64_t offset) {
  control_.push_back({header(kind, tag, offset), {}});
}

bool PeerChannel::progress(double now_s, std::vector<TransportEvent>& events) {
  if (!open_) return false;
  if (last_heard_s_ < 0) last_heard_s_ = last_sent_s_ = now_s;
  bool moved = false;
  try {
    moved = read_frames(events);
    if (moved || sink_holds_up_) last_heard_s_ = now_s;
    if (!open_) return true;
    if (write_frames(events)) {
      last_sent_s_ = now_s;
      moved = true;
    }
    check_liveness(now_s, events);
  } catch (const TransportError& error) {
    lose(error.what(), events);
    return true;
  }
  return moved;
}

// ---------------------------------------------------------------------------------------------
// arriving

bool PeerChannel::read_frames(std::vector<TransportEvent>& events) {
  const bool grew = pipe_->fill();
  bool moved = grew;
  sink_holds_up_ = false;
  while (open_) {
    const std::span<const std::byte> window = pipe_->read_window();
    const bool step = frame_ ? read_payload(window, events) : read_header(window, events);
    if (!step) break;
    moved = true;
  }
  if (open_ && !moved && !sink_holds_up_ && pipe_->ended()) {
    lose("connection ended without a farewell: " + pipe_->end_reason(), events);
    return true;
  }
  return moved;
}

bool PeerChannel::read_header(std::span<const std::byte> window,
                              std::vector<TransportEvent>& events) {
  if (window.size() < kHeaderBytes) return false;
  std::array<std::byte, kHeaderBytes> bytes;  // a copy: the peer may change shared memory
  std::copy_n(window.begin(), kHeaderBytes, bytes.begin());
  const FrameHeader arrived = decode_header(bytes.data());
  if (!incarnation_) incarnation_ = arrived.incarnation;
  if (arrived.epoch != config_.epoch || arrived.incarnation != *incarnation_) {
    throw TransportError("frame of another membership epoch or process: epoch " +
                         std::to_string(arrived.epoch) + ", expected " +
                         std::to_string(config_.epoch));
  }
  pipe_->release(kHeaderBytes);
  counters_.wire_received_bytes += kHeaderBytes;
  frame_ = arrived;
  payload_left_ = padded_bytes(arrived.length);
  if (arrived.kind == FrameKind::kData) accept_data();
  if (payload_left_ == 0) finish_frame(events);
  if (arrived.kind == FrameKind::kReady) accept_ready(arrived);
  return true;
}

void PeerChannel::accept_ready(const FrameHeader& announced) {
  const auto posted = waiting_.find(announced.tag);
  if (posted == waiting_.end()) {
    if (forgotten_plans_.contains(announced.tag.plan)) return;
    if (ready_.size() >= kMaxReadyAhead) {
      throw TransportError("more than " + std::to_string(kMaxReadyAhead) +
                           " messages announced that this rank does not send");
    }
    ready_.emplace(announced.tag, announced.offset);
    return;
  }
  const Outgoing message = posted->second;
  waiting_.erase(posted);
  ready_.emplace(announced.tag, announced.offset);
  send(message.tag, *message.source, message.token, message.order);
}

void PeerChannel::accept_data() {
  const auto found = expected_.find(frame_->tag);
  if (found == expected_.end()) {
    if (forgotten_plans_.contains(frame_->tag.plan)) return;
    throw TransportError("data for " + describe(frame_->tag) + ", which this rank does not expect");
  }
  const Expected& message = found->second;
  const uint64_t size = message.sink->num_bytes();
  if (frame_->offset != message.received_bytes || frame_->length > size - message.received_bytes) {
    throw TransportError("data for " + describe(frame_->tag) + " at byte " +
                         std::to_string(frame_->offset) + ", expected byte " +
                         std::to_string(message.received_bytes) + " of " + std::to_string(size));
  }
  message.sink->weight = frame_->weight;
}

bool PeerChannel::read_payload(std::span<const std::byte> window,
                               std::vector<TransportEvent>& events) {
  if (frame_->kind == FrameKind::kFarewell) return read_farewell(window, events);
  const size_t padding = padded_bytes(frame_->length) - frame_->length;
  size_t taken = 0;
  if (payload_left_ > padding) {
    const auto bytes = window.first(std::min(window.size(), payload_left_ - padding));
    const auto found = expected_.find(frame_->tag);
    taken = bytes.size();
    if (found != expected_.end() && frame_->kind == FrameKind::kData) {
      taken = found->second.sink->consume(bytes);
      sink_holds_up_ = taken == 0 && !bytes.empty();
      found->second.received_bytes += taken;
      counters_.payload_received_bytes += taken;
    }
  } else {
    taken = std::min(window.size(), payload_left_);
  }
  if (taken == 0) return false;
  pipe_->release(taken);
  counters_.wire_received_bytes += taken;
  payload_left_ -= taken;
  if (payload_left_ == 0) finish_frame(events);
  return true;
}

bool PeerChannel::read_farewell(std::span<const std::byte> window,
                                std::vector<TransportEvent>& events) {
  if (window.size() < payload_left_) return false;
  TransportEvent event{TransportEvent::Kind::kPeerLeft, 0, peer_, {}};
  event.farewell.failed = (frame_->flags & kFailedFlag) != 0;
  event.farewell.origin = static_cast<int>(static_cast<int64_t>(frame_->offset));
  event.farewell.cause.assign(reinterpret_cast<const char*>(window.data()), frame_->length);
  pipe_->release(payload_left_);
  counters_.wire_received_bytes += payload_left_;
  frame_.reset();
  open_ = false;
  events.push_back(std::move(event));
  return true;
}

void PeerChannel::finish_frame(std::vector<TransportEvent>& events) {
  if (frame_->kind == FrameKind::kFarewell) {
    read_farewell({}, events);
    return;
  }
  const auto found = expected_.find(frame_->tag);
  const bool is_data = frame_->kind == FrameKind::kData;
  frame_.reset();
  if (!is_data || found == expected_.end()) return;
  if (found->second.received_bytes < found->second.sink->num_bytes()) return;
  events.push_back({TransportEvent::Kind::kReceived, found->second.token, peer_, {}});
  ++counters_.messages_received;
  expected_.erase(found);
}

// ---------------------------------------------------------------------------------------------
// leaving

bool PeerChannel::write_frames(std::vector<TransportEvent>& events) {
  bool wrote = false;
  while (!control_.empty() && write_control()) wrote = true;
  if (control_.empty() && !active_.empty()) wrote = write_data(events) || wrote;
  if (farewell_ && control_.empty() && active_.empty()) {
    control_.push_back(*std::exchange(farewell_, std::nullopt));
    wrote = write_control() || wrote;
  }
  const bool flushed = pipe_->flush();
  if (ending_ == Ending::kQueued && !farewell_ && control_.empty()) {
    pipe_->finish_writing();
    ending_ = Ending::kWritten;
  }
  return wrote || flushed;
}

bool PeerChannel::write_control() {
  const ControlFrame& frame = control_.front();
  const size_t payload = padded_bytes(frame.payload.size());
  const std::span<std::byte> window = pipe_->write_window();
  if (window.size() < kHeaderBytes + payload) return false;
  encode_header(frame.header, window.data());
  std::memset(window.data() + kHeaderBytes, 0, payload);
  const auto bytes = as_bytes(frame.payload);
  std::copy(bytes.begin(), bytes.end(), window.begin() + kHeaderBytes);
  pipe_->commit(kHeaderBytes + payload);
  counters_.wire_sent_bytes += kHeaderBytes + payload;
  control_.pop_front();
  return true;
}

size_t PeerChannel::bytes_before_link(double now_s) {
  const size_t bytes = open_ ? pipe_->bytes_before_link() : 0;
  if (std::exchange(backlog_bytes_, bytes) != bytes) backlog_moved_s_ = now_s;
  return now_s - backlog_moved_s_ < kPatience_s ? bytes : 0;
}

void PeerChannel::list_departures(std::vector<Departure>& into) {
  const bool busy = !open_ || held_up_ || pipe_->write_window().size() < pipe_->min_capacity();
  if (busy) return;
  for (const Outgoing& message : active_) {
    const uint64_t size = std::max<uint64_t>(message.source->num_bytes(), 1);
    into.push_back(
        {this, message.order, static_cast<double>(message.sent_bytes) / static_cast<double>(size)});
  }
}

std::deque<PeerChannel::Outgoing>::iterator PeerChannel::next_to_leave() {
  if (!crosses_network()) return active_.begin();
  const std::optional<uint64_t> order = held_up_ ? held_up_ : turn_;
  return std::find_if(active_.begin(), active_.end(),
                      [&](const Outgoing& message) { return message.order == order; });
}

bool PeerChannel::write_data(std::vector<TransportEvent>& events) {
  const auto next = next_to_leave();
  if (next == active_.end()) return false;
  Outgoing& message = *next;
  const uint64_t left = message.source->num_bytes() - message.sent_bytes;
  const std::span<std::byte> window = pipe_->write_window();
  if (window.size() < kHeaderBytes + padded_bytes(std::min<uint64_t>(left, kMinPayloadBytes))) {
    return false;
  }
  const size_t most = crosses_network() ? kMaxTurnBytes : kMaxFramePayloadBytes;
  const size_t room = std::min(window.size() - kHeaderBytes, most) & ~size_t{7};
  const size_t made = left == 0 ? 0 : message.source->produce(window.subspan(kHeaderBytes, room));
  held_up_.reset();
  if (made == 0 && left > 0) {
    held_up_ = message.order;
    return false;
  }
  FrameHeader data = header(FrameKind::kData, message.tag, message.sent_bytes);
  data.weight = message.source->weight;
  data.length = static_cast<uint32_t>(made);
  encode_header(data, window.data());
  const size_t padding = padded_bytes(made) - made;
  std::memset(window.data() + kHeaderBytes + made, 0, padding);
  pipe_->commit(kHeaderBytes + made + padding);
  message.sent_bytes += made;
  counters_.payload_sent_bytes += made;
  counters_.wire_sent_bytes += kHeaderBytes + made + padding;
  if (message.sent_bytes == message.source->num_bytes()) {
    events.push_back({TransportEvent::Kind::kSent, message.token, peer_, {}});
    ++counters_.messages_sent;
    active_.erase(next);
  }
  return true;
}

// ---------------------------------------------------------------------------------------------
// time

void PeerChannel::check_liveness(double now_s, std::vector<TransportEvent>& events) {
  if (now_s - last_heard_s_ > config_.timeout_s) {
    lose("no sign of life for " + spell_seconds(now_s - last_heard_s_) + " (timeout " +
             spell_seconds(config_.timeout_s) + ")",
         events);
    return;
  }
  const bool idle = control_.empty() && !may_send() && ending_ == Ending::kNone;
  if (idle && now_s - last_sent_s_ >= config_.timeout_s / kHeartbeatsPerTimeout) {
    queue_control(FrameKind::kHeartbeat, {}, 0);
    if (write_frames(events)) last_sent_s_ = now_s;
  }
}

void PeerChannel::lose(const std::string& cause, std::vector<TransportEvent>& events) {
  open_ = false;
  TransportEvent event{TransportEvent::Kind::kPeerLost, 0, peer_, {}};
  event.farewell = {
      true, config_.rank,
      "rank " + std::to_string(peer_) + ": " + cause + " (" + pipe_->describe() + ")"};
  events.push_back(std::move(event));
}

bool PeerChannel::may_send() const {
  return !active_.empty() && !held_up_ && (turn_ || !crosses_network());
}

bool PeerChannel::wants_to_write() const { return !control_.empty() || farewell_ || may_send(); }

bool PeerChannel::prepare_to_sleep(double now_s, std::vector<PollItem>& items,
                                   double& max_sleep_s) {
  if (!open_) return true;
  const double interval_s = config_.timeout_s / kHeartbeatsPerTimeout;
  max_sleep_s = std::min(max_sleep_s, std::max(0.0, last_sent_s_ + interval_s - now_s));
  return pipe_->prepare_to_sleep(wants_to_write(), items);
}

bool PeerChannel::drained() const {
  return !open_ || (ending_ == Ending::kWritten && pipe_->drained());
}

}  // namespace crossover
