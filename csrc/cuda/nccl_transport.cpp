#include "cuda/nccl_transport.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <set>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/peer_channel.h"

namespace crossover {
namespace {

constexpr size_t kContactBytes = 16;  // of one first message
constexpr double kMinPoll_s = 20e-6;
constexpr double kMaxPoll_s = 5e-3;
constexpr double kPollsPerAge = 8.0;  // a wait is noticed as over an eighth of its length late

}  // namespace

/// The agreement on one message: its size, told by the sender, checked by the receiver.
class NcclTransport::Notice final : public MessageSource, public MessageSink {
 public:
  explicit Notice(const QueuedTransfer& transfer)
      : tag_(transfer.tag),
        peer_(transfer.peer),
        message_bytes_(transfer.num_bytes()),
        sink_(transfer.sink) {
    if (transfer.source) MessageSource::weight = transfer.source->weight;
  }
  /// All of it has arrived, or has left.
  void end() {
    if (sink_) sink_->weight = MessageSink::weight;
  }
  size_t num_bytes() const override { return sizeof(uint64_t); }
  size_t produce(std::span<std::byte> out) override {
    if (out.size() < sizeof(uint64_t)) return 0;
    std::memcpy(out.data(), &message_bytes_, sizeof(uint64_t));
    return sizeof(uint64_t);
  }
  size_t consume(std::span<const std::byte> in) override {
    if (in.size() < sizeof(uint64_t)) return 0;
    uint64_t theirs = 0;
    std::memcpy(&theirs, in.data(), sizeof(uint64_t));
    if (theirs != message_bytes_) {
      throw TransportError(describe(tag_) + ": rank " + std::to_string(peer_) + " sends " +
                           std::to_string(theirs) + " bytes, this rank has room for " +
                           std::to_string(message_bytes_) + "; the plans differ");
    }
    return sizeof(uint64_t);
  }
  uint32_t plan() const { return tag_.plan; }

 private:
  static_assert(std::endian::native == std::endian::little, "the wire is little-endian");
  const MessageTag tag_;
  const int peer_;
  const uint64_t message_bytes_;
  MessageSink* const sink_;  // of the message, if it is received here
};

NcclTransport::NcclTransport(NcclTransportConfig config, std::shared_ptr<const NcclLibrary> library,
                             std::shared_ptr<StreamEvents> events, std::shared_ptr<Device> device,
                             std::unique_ptr<Transport> control, const Clock& clock)
    : config_(std::move(config)),
      events_(events),
      device_(std::move(device)),
      control_(std::move(control)),
      clock_(clock),
      communicator_(config_.communicator, std::move(library), std::move(events)) {}

NcclTransport::~NcclTransport() = default;

void NcclTransport::receive(int peer, const MessageTag& tag, MessageSink& sink, uint64_t token) {
  queue_.add({tag, peer, nullptr, &sink, token, false});
}

void NcclTransport::send(int peer, const MessageTag& tag, MessageSource& source, uint64_t token) {
  queue_.add({tag, peer, &source, nullptr, token, false});
}

void NcclTransport::phase_posted(const MessageTag& tag, bool last) {
  for (const uint64_t id : queue_.post(tag, last)) {
    if (config_.host_ready) {
      agree(id);
    } else {
      queue_.agree(id);
    }
  }
}

void NcclTransport::agree(uint64_t id) {
  const QueuedTransfer& transfer = queue_.transfer(id);
  Notice& notice = *notices_.emplace(id, std::make_unique<Notice>(transfer)).first->second;
  if (transfer.is_send()) {
    control_->send(transfer.peer, transfer.tag, notice, id);
  } else {
    control_->receive(transfer.peer, transfer.tag, notice, id);
  }
}

void NcclTransport::forget_plan(uint32_t plan) {
  control_->forget_plan(plan);
  queue_.forget_plan(plan);
  std::erase_if(notices_, [plan](const auto& entry) { return entry.second->plan() == plan; });
  if (!launching_ || launching_->transfers.empty() ||
      launching_->transfers.front().tag.plan != plan) {
    return;
  }
  const double began_s = clock_.now_s();
  while (communicator_.busy()) {
    if (clock_.now_s() - began_s > config_.call_timeout_s) {
      throw TransportError(where() + communicator_.current_call() +
                           " did not end; its plan was removed meanwhile");
    }
    std::this_thread::yield();
  }
  finish_launch(nullptr);
}

bool NcclTransport::progress(double now_s, std::vector<TransportEvent>& events) {
  if (now_s_ < 0) now_s_ = began_s_ = now_s;
  const double gap_s = now_s - excused_s_ - now_s_;
  if (gap_s > config_.timeout_s / 2) excused_s_ += gap_s;
  now_s_ = now_s - excused_s_;
  bool moved = control_->progress(now_s, control_events_);
  route(events);
  try {
    moved = drive(events) || moved;
    part_if_due();
  } catch (const CrossoverError&) {
    launching_.reset();
    in_flight_.clear();
    const bool was_over = std::exchange(stage_, Stage::kClosed) == Stage::kFinalizing;
    if (!was_over) throw;
    communicator_.abort();  // the peers have left already: there is nobody to tell
  }
  release_held(events);
  return moved;
}

void NcclTransport::end_notice(uint64_t id) {
  if (const auto found = notices_.find(id); found != notices_.end()) {
    found->second->end();
    notices_.erase(found);
  }
  queue_.agree(id);
}

void NcclTransport::route(std::vector<TransportEvent>& events) {
  using Kind = TransportEvent::Kind;
  for (TransportEvent& event : control_events_) {
    if (event.kind == Kind::kSent || event.kind == Kind::kReceived) {
      end_notice(event.token);
    } else if (event.kind == Kind::kPeerLeft && !event.farewell.failed) {
      held_.push_back({std::move(event), now_s_ + config_.timeout_s});
    } else {
      events.push_back(std::move(event));
    }
  }
  control_events_.clear();
}

bool NcclTransport::drive(std::vector<TransportEvent>& events) {
  if (stage_ == Stage::kClosed) return false;
  if (stage_ == Stage::kNew) {
    events_->make_current();
    communicator_.start();
    stage_ = Stage::kStarting;
    call_began_s_ = now_s_;
    return true;
  }
  bool moved = retire_groups();
  if (!communicator_.busy()) {
    moved = settle(events) || moved;
    if (stage_ == Stage::kOpen && queue_.launchable()) {
      launch_next();
      moved = true;
    }
  }
  check_deadlines();
  return moved;
}

// What follows the end of the call that NCCL was at.
bool NcclTransport::settle(std::vector<TransportEvent>& events) {
  switch (stage_) {
    case Stage::kStarting:
      contact_peers();
      return true;
    case Stage::kContacting:
    case Stage::kOpen:
      stage_ = Stage::kOpen;
      if (!launching_) return false;
      finish_launch(&events);
      return true;
    case Stage::kFinalizing:
      stage_ = Stage::kClosed;
      return true;
    case Stage::kNew:
    case Stage::kClosed:
      break;
  }
  return false;
}

void NcclTransport::contact_peers() {
  struct Memory {
    std::shared_ptr<Device> device;  // outlives its buffer
    std::unique_ptr<DeviceBuffer> buffer;
  };
  const size_t bytes = 2 * kContactBytes * std::max<size_t>(1, config_.warm_peers.size());
  const auto memory = std::make_shared<Memory>(Memory{device_, device_->allocate(bytes)});
  communicator_.keep(memory);
  std::vector<NcclTransfer> group;
  std::byte* at = memory->buffer->data();
  for (const int peer : config_.warm_peers) {
    group.push_back({true, peer, at, kContactBytes});
    group.push_back({false, peer, at + kContactBytes, kContactBytes});
    at += 2 * kContactBytes;
  }
  communicator_.launch(
      group, "the first contact with " + std::to_string(config_.warm_peers.size()) + " peers");
  launching_ = Group{{}, now_s_, 0};
  call_began_s_ = now_s_;
  stage_ = Stage::kContacting;
}

void NcclTransport::launch_next() {
  Group group{queue_.take(), now_s_, 0};
  std::vector<NcclTransfer> transfers;
  for (const QueuedTransfer& transfer : group.transfers) {
    std::byte* data = transfer.is_send()
                          ? const_cast<std::byte*>(transfer.source->acquire(events_->stream()))
                          : transfer.sink->acquire(events_->stream());
    if (!data && transfer.num_bytes() > 0) {
      throw TransportError(where() + describe(transfer.tag) +
                           ": its memory is not on a CUDA device; choose another transport");
    }
    transfers.push_back({transfer.is_send(), transfer.peer, data, transfer.num_bytes()});
  }
  communicator_.launch(transfers, describe(group.transfers.front().tag));
  launching_ = std::move(group);
  call_began_s_ = now_s_;
}

void NcclTransport::finish_launch(std::vector<TransportEvent>* events) {
  using Kind = TransportEvent::Kind;
  for (const QueuedTransfer& transfer : launching_->transfers) {
    if (transfer.is_send()) {
      counters_.payload_sent_bytes += transfer.num_bytes();
      ++counters_.messages_sent;
      transfer.source->release(events_->stream());
    } else {
      counters_.payload_received_bytes += transfer.num_bytes();
      ++counters_.messages_received;
      transfer.sink->release(events_->stream());
    }
    if (!events) continue;
    const Kind kind = transfer.is_send() ? Kind::kSent : Kind::kReceived;
    events->push_back({kind, transfer.token, transfer.peer, {}});
  }
  launching_->mark = events_->record();
  in_flight_.push_back(std::move(*launching_));
  launching_.reset();
}

bool NcclTransport::retire_groups() {
  bool moved = false;
  while (!in_flight_.empty() && events_->done(in_flight_.front().mark)) {
    if (in_flight_.front().transfers.empty()) {
      counters_.first_contact_s = now_s_ - began_s_;
      communicator_.keep(nullptr);
    }
    in_flight_.pop_front();
    moved = true;
  }
  return moved;
}

void NcclTransport::check_deadlines() const {
  if (launching_ || stage_ == Stage::kStarting || stage_ == Stage::kFinalizing) {
    if (now_s_ - call_began_s_ > config_.call_timeout_s) {
      throw TransportError(where() + communicator_.current_call() + " has been in progress for " +
                           std::to_string(static_cast<int>(now_s_ - call_began_s_)) + " s");
    }
  }
  if (in_flight_.empty()) return;
  const Group& group = in_flight_.front();
  if (now_s_ - group.launched_s <= config_.group_timeout_s) return;
  std::string what = "the first contact with the peers";
  if (!group.transfers.empty()) what = describe(group.transfers.front().tag) + ", with rank";
  std::set<int> peers;
  for (const QueuedTransfer& transfer : group.transfers) peers.insert(transfer.peer);
  for (const int peer : peers) what += " " + std::to_string(peer);
  throw TransportError(where() + what + " was launched " +
                       std::to_string(static_cast<int>(now_s_ - group.launched_s)) +
                       " s ago and is not complete; every peer is alive");
}

bool NcclTransport::involved(int peer) const {
  const auto with_peer = [peer](const QueuedTransfer& transfer) { return transfer.peer == peer; };
  const auto holds = [&](const Group& group) {
    return std::any_of(group.transfers.begin(), group.transfers.end(), with_peer);
  };
  if (stage_ == Stage::kClosed) return false;
  return (launching_ && holds(*launching_)) ||
         std::any_of(in_flight_.begin(), in_flight_.end(), holds) || queue_.awaits(peer);
}

void NcclTransport::release_held(std::vector<TransportEvent>& events) {
  std::erase_if(held_, [&](HeldFarewell& held) {
    if (involved(held.event.peer) && now_s_ < held.until_s) return false;
    events.push_back(std::move(held.event));
    return true;
  });
}

void NcclTransport::say_farewell(const Farewell& farewell) {
  if (parted_ || farewell_) return;
  farewell_ = farewell;
  if (!farewell.failed) return;
  control_->say_farewell(farewell);
  parted_ = true;
  stage_ = Stage::kClosed;
  launching_.reset();
  in_flight_.clear();
  communicator_.abort();
}

bool NcclTransport::at_rest() const {
  if (stage_ == Stage::kClosed) return true;
  return stage_ == Stage::kOpen && !launching_ && in_flight_.empty() && !queue_.launchable();
}

void NcclTransport::part_if_due() {
  if (!farewell_ || parted_ || !at_rest()) return;
  control_->say_farewell(*farewell_);
  parted_ = true;
  if (stage_ == Stage::kClosed) return;
  communicator_.finalize();
  stage_ = Stage::kFinalizing;
  call_began_s_ = now_s_;
}

bool NcclTransport::drained() { return parted_ && stage_ == Stage::kClosed && control_->drained(); }

bool NcclTransport::prepare_to_sleep(double now_s, std::vector<PollItem>& items,
                                     double& max_sleep_s) {
  if (!control_->prepare_to_sleep(now_s, items, max_sleep_s)) return false;
  if (stage_ == Stage::kNew) return false;
  for (const HeldFarewell& held : held_) {
    max_sleep_s = std::min(max_sleep_s, std::max(0.0, held.until_s - now_s_));
  }
  if (stage_ == Stage::kClosed) return true;
  const bool calling = launching_ || stage_ != Stage::kOpen;
  if (!calling && queue_.launchable()) return false;
  if (!calling && in_flight_.empty()) return true;
  // NCCL and CUDA wake nobody: look again, the later the longer it lasts.
  const double since_s = calling ? call_began_s_ : in_flight_.front().launched_s;
  const double age_s = now_s - excused_s_ - since_s;
  max_sleep_s = std::min(max_sleep_s, std::clamp(age_s / kPollsPerAge, kMinPoll_s, kMaxPoll_s));
  return true;
}

TransportCounters NcclTransport::counters() const {
  TransportCounters counters = counters_;
  const TransportCounters control = control_->counters();
  counters.wire_sent_bytes = counters.payload_sent_bytes + control.wire_sent_bytes;
  counters.wire_received_bytes = counters.payload_received_bytes + control.wire_received_bytes;
  return counters;
}

std::string NcclTransport::where() const {
  return "rank " + std::to_string(config_.communicator.rank) + ": NCCL: ";
}

}  // namespace crossover
