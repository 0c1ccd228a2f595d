#include "core/call.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.h"

namespace crossover {
namespace {

/// Messages of a call that are with the transport at once, per peer: enough that it never runs dry,
/// few enough that what has just been reduced leaves while it is in the cache.
constexpr uint32_t kMessagesAhead = 4;

}  // namespace

class Call::Source final : public MessageSource {
 public:
  Source(Range range, double code) : left_(range), num_bytes_(range.num_bytes) { weight = code; }
  size_t num_bytes() const override { return num_bytes_; }
  size_t produce(std::span<std::byte> out) override {
    const size_t given = std::min<uint64_t>(out.size(), left_.num_bytes);
    std::memcpy(out.data(), left_.data, given);
    left_ = {left_.data + given, left_.num_bytes - given};
    return given;
  }

 private:
  Range left_;
  const size_t num_bytes_;
};

/// Where a receive stands. `turn`: the peer whose message is combined next; what others send
/// meanwhile is kept aside.
struct Call::Room {
  std::vector<std::unique_ptr<Sink>> sinks;
  uint32_t turn = 0;
};

/// What goes to one peer. Forwards first: what they send is in the cache.
struct Call::Lane {
  std::deque<uint32_t> plain;
  std::deque<uint32_t> forwards;
  uint32_t num_posted = 0;     // sends that are with the transport
  uint32_t num_open = 0;       // messages to and from the peer that are not complete
  bool has_come = false;       // the peer is in this call: a message to or from it is complete
  uint32_t next_sent = 0;      // label
  uint32_t next_received = 0;  // label
};

class Call::Sink final : public MessageSink {
 public:
  Sink(Call& call, uint32_t index, uint32_t part) : call_(call), index_(index), part_(part) {}
  size_t num_bytes() const override { return receive().into.num_bytes; }

  size_t consume(std::span<const std::byte> in) override {
    const size_t unit = receive().combines ? call_.program_.reduction.element_bytes : 1;
    const size_t taken = in.size() / unit * unit;
    if (weight == call_.program_.signature.encoded()) take(in.first(taken));
    at_ += taken;
    return taken;
  }

  bool is_complete() const { return is_complete_; }
  void complete() { is_complete_ = true; }
  /// Its turn has come, and it is complete: combines what was kept aside.
  void settle() {
    if (!aside_) return;
    combine(0, {aside_.get(), num_bytes()});
    call_.spare_.push_back(std::move(aside_));
  }

 private:
  const CallProgram::Receive& receive() const { return call_.program_.receives[index_]; }

  void take(std::span<const std::byte> in) {
    if (!receive().combines) {
      std::memcpy(receive().into.data + at_, in.data(), in.size());
      return;
    }
    const bool is_direct = !aside_ && call_.rooms_[index_].turn == part_;
    if (is_direct) return combine(at_, in);
    if (!aside_) aside_ = call_.take_spare();
    std::memcpy(aside_.get() + at_, in.data(), in.size());
  }

  void combine(uint64_t at, std::span<const std::byte> in) const {
    const Reduction& reduction = call_.program_.reduction;
    reduction.combine(receive().into.data + at, in.data(),
                      static_cast<int64_t>(in.size() / reduction.element_bytes));
  }

  Call& call_;
  const uint32_t index_;
  const uint32_t part_;
  uint64_t at_ = 0;
  bool is_complete_ = false;
  std::unique_ptr<std::byte[]> aside_;
};

// ---------------------------------------------------------------------------------------------
// one call

Call::Call(uint64_t id, CallProgram program, double timeout_s, double deadline_s)
    : id_(id), program_(std::move(program)), timeout_s_(timeout_s), deadline_s_(deadline_s) {}

Call::~Call() = default;

std::string Call::describe() const {
  if (!program_.point_to_point_tag) {
    return program_.signature.describe() + " (collective " + std::to_string(sequence_) + ")";
  }
  const bool sends = !program_.sends.empty();
  const int peer = sends ? program_.sends[0].peer : program_.receives[0].peers[0];
  return (sends ? "send to " : "receive from ") + std::to_string(peer) + ", tag " +
         std::to_string(*program_.point_to_point_tag);
}

MessageTag Call::tag(uint32_t label) const {
  if (program_.point_to_point_tag) {
    return {.plan = kPointToPointPlan, .segment = *program_.point_to_point_tag, .round = sequence_};
  }
  return {.plan = kCollectivePlan, .segment = label, .round = sequence_};
}

void Call::begin(uint64_t sequence, Transport& transport, CallTokens& tokens) {
  sequence_ = sequence;
  const auto lane = [&](int peer) -> Lane& {
    if (lanes_.size() <= static_cast<size_t>(peer)) lanes_.resize(peer + 1);
    return lanes_[peer];
  };
  followers_.resize(program_.receives.size());
  sources_.resize(program_.sends.size());
  for (uint32_t index = 0; index < program_.sends.size(); ++index) {
    const CallProgram::Send& send = program_.sends[index];
    Lane& to = lane(send.peer);
    labels_.push_back(to.next_sent++);
    ++to.num_open;
    if (send.after) {
      followers_[*send.after].push_back(index);
    } else {
      to.plain.push_back(index);
    }
  }
  num_open_ = program_.sends.size();
  rooms_.resize(program_.receives.size());
  for (uint32_t index = 0; index < rooms_.size(); ++index) {
    const std::vector<int>& peers = program_.receives[index].peers;
    for (uint32_t part = 0; part < peers.size(); ++part) {
      Lane& from = lane(peers[part]);
      rooms_[index].sinks.push_back(std::make_unique<Sink>(*this, index, part));
      transport.receive(peers[part], tag(from.next_received++), *rooms_[index].sinks.back(),
                        tokens.add({shared_from_this(), false, index, part}));
      ++from.num_open;
      ++num_open_;
    }
  }
  for (size_t peer = 0; peer < lanes_.size(); ++peer) {
    fill_lane(static_cast<int>(peer), transport, tokens);
  }
}

void Call::fill_lane(int peer, Transport& transport, CallTokens& tokens) {
  Lane& lane = lanes_[peer];
  while (lane.num_posted < kMessagesAhead && !(lane.forwards.empty() && lane.plain.empty())) {
    std::deque<uint32_t>& queue = lane.forwards.empty() ? lane.plain : lane.forwards;
    const uint32_t index = queue.front();
    queue.pop_front();
    ++lane.num_posted;
    sources_[index] =
        std::make_unique<Source>(program_.sends[index].from, program_.signature.encoded());
    transport.send(peer, tag(labels_[index]), *sources_[index],
                   tokens.add({shared_from_this(), true, index, 0}));
  }
}

void Call::on_complete(const CallOperation& operation, Transport& transport, CallTokens& tokens) {
  const uint32_t index = operation.index;
  if (operation.is_send) {
    sources_[index].reset();
    const int peer = program_.sends[index].peer;
    count_message(peer);
    --lanes_[peer].num_posted;
    fill_lane(peer, transport, tokens);
    return;
  }
  const int peer = program_.receives[index].peers[operation.part];
  Sink& sink = *rooms_[index].sinks[operation.part];
  require_same_call(peer, sink.weight);  // before it counts: such a call is never complete
  count_message(peer);
  sink.complete();
  Room& room = rooms_[index];
  while (room.turn < room.sinks.size() && room.sinks[room.turn]->is_complete()) {
    room.sinks[room.turn++]->settle();
  }
  if (room.turn == room.sinks.size()) complete_receive(index, transport, tokens);
}

void Call::count_message(int peer) {
  --num_open_;
  --lanes_[peer].num_open;
  lanes_[peer].has_come = true;
}

void Call::complete_receive(uint32_t index, Transport& transport, CallTokens& tokens) {
  const CallProgram::Receive& receive = program_.receives[index];
  const Reduction& reduction = program_.reduction;
  if (receive.combines && reduction.divide) {
    reduction.divide(receive.into.data,
                     static_cast<int64_t>(receive.into.num_bytes / reduction.element_bytes),
                     program_.divisor);
  }
  for (const uint32_t send : followers_[index]) {
    const int peer = program_.sends[send].peer;
    lanes_[peer].forwards.push_back(send);
    fill_lane(peer, transport, tokens);
  }
}

void Call::require_same_call(int peer, double code) const {
  if (code == program_.signature.encoded()) return;
  throw InvalidArgument(describe() + ": rank " + std::to_string(peer) + " calls " +
                        CallSignature::decoded(code).describe() +
                        " instead; all ranks make the same calls in the same order");
}

std::unique_ptr<std::byte[]> Call::take_spare() {
  if (spare_.empty()) return std::make_unique_for_overwrite<std::byte[]>(kChunkBytes);
  std::unique_ptr<std::byte[]> taken = std::move(spare_.back());
  spare_.pop_back();
  return taken;
}

std::vector<int> Call::peers() const {
  std::vector<int> found;
  for (size_t peer = 0; peer < lanes_.size(); ++peer) {
    if (lanes_[peer].num_open > 0) found.push_back(static_cast<int>(peer));
  }
  return found;
}

std::vector<int> Call::absent_peers() const {
  std::vector<int> found = peers();
  std::erase_if(found, [&](int peer) { return lanes_[peer].has_come; });
  return found.empty() ? peers() : found;
}

// ---------------------------------------------------------------------------------------------
// all calls

uint64_t CallTokens::add(CallOperation operation) {
  if (free_.empty()) {
    operations_.push_back(std::move(operation));
    return kCallBit | (operations_.size() - 1);
  }
  const uint64_t index = free_.back();
  free_.pop_back();
  operations_[index] = std::move(operation);
  return kCallBit | index;
}

CallOperation CallTokens::take(uint64_t token) {
  const uint64_t index = token & ~kCallBit;
  free_.push_back(index);
  return std::exchange(operations_.at(index), {});
}

bool CallTable::begin(const std::shared_ptr<Call>& call, Transport& transport) {
  const CallProgram& program = call->program();
  uint64_t* sequence = &next_sequence_;
  if (program.point_to_point_tag) {
    const bool sends = !program.sends.empty();
    const int peer = sends ? program.sends[0].peer : program.receives[0].peers[0];
    sequence = &(sends ? next_sent_ : next_received_)[{peer, *program.point_to_point_tag}];
  }
  calls_.push_back(call);
  call->begin((*sequence)++, transport, tokens_);
  if (!call->is_complete()) return false;
  calls_.pop_back();
  return true;
}

std::shared_ptr<Call> CallTable::on_complete(uint64_t token, Transport& transport) {
  const CallOperation operation = tokens_.take(token);
  if (!operation.call) return nullptr;
  operation.call->on_complete(operation, transport, tokens_);
  if (!operation.call->is_complete()) return nullptr;
  std::erase(calls_, operation.call);
  return operation.call;
}

void CallTable::abandon(Transport& transport) {
  transport.forget_plan(kCollectivePlan);
  transport.forget_plan(kPointToPointPlan);
  calls_.clear();
  tokens_ = {};
}

const Call* CallTable::overdue(double now_s) const {
  for (const auto& call : calls_) {
    if (now_s >= call->deadline_s()) return call.get();
  }
  return nullptr;
}

const Call* CallTable::waiting_for(int peer) const {
  for (const auto& call : calls_) {
    const std::vector<int> peers = call->peers();
    if (std::binary_search(peers.begin(), peers.end(), peer)) return call.get();
  }
  return nullptr;
}

double CallTable::next_deadline_in_s(double now_s) const {
  double next_s = std::numeric_limits<double>::infinity();
  for (const auto& call : calls_) next_s = std::min(next_s, call->deadline_s() - now_s);
  return std::max(0.0, next_s);
}

}  // namespace crossover
