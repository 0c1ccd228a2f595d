#include "core/segment_exchange.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "core/push_sum.h"
#include "core/random.h"

namespace crossover {
namespace {

constexpr uint32_t kRoundingKey = 0x726f756e;  // apart from the draws of schedules

}  // namespace

uint64_t OperationTable::add(const Operation& operation) {
  if (free_.empty()) {
    operations_.push_back(operation);
    return operations_.size() - 1;
  }
  const uint64_t token = free_.back();
  free_.pop_back();
  operations_[token] = operation;
  return token;
}

Operation OperationTable::take(uint64_t token) {
  check(token < operations_.size(), "a token that was given out");
  free_.push_back(token);
  return std::exchange(operations_[token], Operation{});
}

std::vector<int> OperationTable::peers_of(const SegmentExchange& exchange) const {
  std::vector<int> peers;
  for (const Operation& operation : operations_) {
    if (operation.exchange == &exchange) peers.push_back(operation.peer);
  }
  return peers;
}

void OperationTable::drop(const SegmentExchange& exchange) {
  for (uint64_t token = 0; token < operations_.size(); ++token) {
    if (operations_[token].exchange == &exchange) take(token);
  }
}

std::string describe_segment(const SegmentPlan& plan, uint32_t segment) {
  return "segment " + std::to_string(segment) + " '" + plan.segment(segment).name + "'";
}

SegmentExchange::SegmentExchange(const ExchangeContext& context)
    : context_(context),
      is_push_sum_(context.schedule.stochasticity() == Stochasticity::kColumn),
      notes_(context.device.notes(context.plan.segment(context.segment).numels)) {}

MessageTag SegmentExchange::tag(uint32_t phase) const {
  return {context_.plan_id, context_.segment, round_, phase};
}

Dtype SegmentExchange::work_dtype() const {
  const bool wide = context_.plan.segment(context_.segment).dtype == Dtype::kFloat64;
  return wide ? Dtype::kFloat64 : Dtype::kFloat32;
}

// Blocks are too coarse for an average whose rounding nobody keeps.
Dtype SegmentExchange::round_wire() const {
  const Dtype segment = context_.plan.segment(context_.segment).dtype;
  const Dtype wire =
      program_.wire ? wire_dtype(segment, *program_.wire) : context_.plan.wire(context_.segment);
  const bool keeps_rounding = !program_.replaces && !program_.same_bits;
  if (wire != Dtype::kInt8Blocks || keeps_rounding) return wire;
  return wire_dtype(segment, Dtype::kBfloat16);
}

bool SegmentExchange::mixes_in_place() const {
  const size_t num_phases = program_.phases.size();
  return num_phases == 0 || (num_phases == 1 && !program_.phases[0].copies && !program_.replaces);
}

Dtype SegmentExchange::message_dtype(uint32_t phase) const {
  return program_.phases[phase].copies && !program_.replaces ? work_dtype() : wire_;
}

uint64_t SegmentExchange::message_bytes(uint32_t phase, const Slice& slice) const {
  return packed_bytes(message_dtype(phase), slice.numel());
}

TensorList SegmentExchange::tensors(std::span<void* const> addresses, StreamHandle stream) const {
  const Segment& segment = context_.plan.segment(context_.segment);
  return {segment.dtype, addresses, segment.numels, notes_.get(), nullptr, stream, rounding_key()};
}

// Ranks round apart, but where programs may leave them with equal sums, which are to stay equal.
// The plan has no part in it: that of a resumed job may have another id.
uint64_t SegmentExchange::rounding_key() const {
  const uint32_t drawer = mixes_in_place() ? static_cast<uint32_t>(context_.rank) + 1 : 0;
  const auto words = philox4x32({drawer, context_.segment, static_cast<uint32_t>(round_),
                                 static_cast<uint32_t>(round_ >> 32)},
                                {kRoundingKey, 0});
  return (uint64_t{words[0]} << 32) | words[1] | 1;
}

TensorList SegmentExchange::work() {
  return {work_dtype(), {&work_address_, 1}, {&work_numel_, 1}, nullptr, work_.get()};
}

PackSpec SegmentExchange::pack_spec(const TensorList& tensors, const Slice& slice,
                                    Dtype wire) const {
  return {tensors,
          slice,
          wire,
          context_.non_finite,
          describe_segment(context_.plan, context_.segment),
          tensors.buffer ? nullptr : posted_,
          tensors.buffer ? std::span<const std::string>{}
                         : context_.plan.segment(context_.segment).tensors};
}

void SegmentExchange::reserve(std::unique_ptr<DeviceBuffer>& buffer, size_t bytes, Device& device) {
  if (!buffer || buffer->size_bytes() < bytes) buffer = device.allocate(bytes);
}

void SegmentExchange::prepare(uint64_t round, Transport& transport, OperationTable& operations) {
  const int64_t numel = context_.plan.segment(context_.segment).numel();
  round_ = round;
  begun_ = false;
  phase_ = 0;
  program_ = context_.schedule.program({round, context_.segment}, numel, context_.rank);
  wire_ = round_wire();
  check(!is_push_sum_ || program_.phases.size() <= 1, "push-sum has programs of one phase");
  awaited_.assign(program_.phases.size(), 0);
  for (uint32_t phase = 0; phase < kPhasesAhead; ++phase) announce(phase, transport, operations);
}

void SegmentExchange::announce(uint32_t phase, Transport& transport, OperationTable& operations) {
  if (phase >= program_.phases.size()) return;
  const std::vector<Receive>& receives = program_.phases[phase].receives;
  std::vector<Inbox>& rooms = inboxes(phase);
  if (rooms.size() < receives.size()) rooms.resize(receives.size());
  for (size_t i = 0; i < receives.size(); ++i) {
    const uint64_t bytes = message_bytes(phase, receives[i].slice);
    if (bytes == 0 || is_own(receives[i])) continue;
    reserve(rooms[i].buffer, bytes, context_.device);
    rooms[i].sink = context_.device.sink(*rooms[i].buffer, bytes);
    ++awaited_[phase];
    const uint64_t token = operations.add({this, false, phase, receives[i].peer, bytes});
    transport.receive(receives[i].peer, tag(phase), *rooms[i].sink, token);
  }
}

bool SegmentExchange::begin(std::span<void* const> addresses, std::shared_ptr<Fence> posted,
                            Transport& transport, OperationTable& operations) {
  addresses_.assign(addresses.begin(), addresses.end());
  posted_ = std::move(posted);
  begun_ = true;
  difference_ = {};
  if (!mixes_in_place()) copy_to_work();
  if (!program_.phases.empty()) send_phase(transport, operations);
  return advance(transport, operations);
}

void SegmentExchange::copy_to_work() {
  const Slice whole{0, context_.plan.segment(context_.segment).numel()};
  reserve(packed_, packed_bytes(wire_, whole.numel()), context_.device);
  reserve(work_, packed_bytes(work_dtype(), whole.numel()), context_.device);
  work_address_ = work_->data();
  work_numel_ = whole.numel();
  context_.device.widen(pack_spec(tensors(addresses_), whole, wire_), *packed_, *work_);
}

void SegmentExchange::round_work() {
  if (wire_ == work_dtype()) return;
  context_.device.widen(pack_spec(work(), {0, work_numel_}, wire_), *packed_, *work_);
}

void SegmentExchange::send_phase(Transport& transport, OperationTable& operations) {
  sources_.clear();
  unsent_ = 0;
  for (const Send& send : program_.phases[phase_].sends) {
    if (send.slice.numel() == 0) continue;
    sources_.push_back(context_.device.source(pack_spec(
        mixes_in_place() ? tensors(addresses_) : work(), send.slice, message_dtype(phase_))));
    sources_.back()->weight = weight_;
    ++unsent_;
    const uint64_t bytes = message_bytes(phase_, send.slice);
    const uint64_t token = operations.add({this, true, phase_, send.peer, bytes});
    transport.send(send.peer, tag(phase_), *sources_.back(), token);
  }
  transport.phase_posted(tag(phase_), phase_ + 1 == program_.phases.size());
}

bool SegmentExchange::on_complete(const Operation& operation, Transport& transport,
                                  OperationTable& operations) {
  if (operation.is_send) {
    --unsent_;
  } else {
    if (is_push_sum_) require_weight(operation);
    --awaited_[operation.phase];
  }
  return begun_ && advance(transport, operations);
}

bool SegmentExchange::advance(Transport& transport, OperationTable& operations) {
  while (phase_ < program_.phases.size()) {
    if (unsent_ > 0 || awaited_[phase_] > 0) return false;
    if (!mixes_in_place()) mix_phase();
    announce(phase_ + kPhasesAhead, transport, operations);
    ++phase_;
    if (phase_ < program_.phases.size()) {
      send_phase(transport, operations);
    } else if (program_.replaces) {
      round_work();
    }
  }
  return true;
}

void SegmentExchange::mix_phase() {
  if (program_.phases[phase_].copies) {
    context_.device.replace(work(), message_dtype(phase_), messages(phase_));
    return;
  }
  const std::vector<WeightedMessage> arrived = messages(phase_);
  if (phase_ == 0) measure(work(), arrived);
  for (const auto& mixed : {own_values(phase_), arrived}) {
    if (!mixed.empty()) context_.device.mix(work(), wire_, mixed);
  }
}

void SegmentExchange::measure(const TensorList& tensors, std::span<const WeightedMessage> arrived) {
  if (program_.wire) difference_ = context_.device.difference(tensors, wire_, arrived);
}

std::vector<WeightedMessage> SegmentExchange::own_values(uint32_t phase) {
  std::vector<WeightedMessage> values;
  if (wire_ == work_dtype()) return values;  // nothing is rounded
  for (const Receive& receive : program_.phases[phase].receives) {
    if (!is_own(receive) || receive.slice.numel() == 0) continue;
    const size_t begin = packed_bytes(work_dtype(), receive.slice.begin);
    values.push_back(
        {work_->data() + begin, receive.slice, work_dtype(), receive.weight, work_.get()});
  }
  return values;
}

std::vector<WeightedMessage> SegmentExchange::messages(uint32_t phase) {
  std::vector<WeightedMessage> arrived;
  const std::vector<Inbox>& rooms = inboxes(phase);
  const std::vector<Receive>& receives = program_.phases[phase].receives;
  for (size_t i = 0; i < receives.size(); ++i) {
    if (receives[i].slice.numel() == 0 || is_own(receives[i])) continue;
    arrived.push_back({rooms[i].buffer->data(), receives[i].slice, message_dtype(phase),
                       receives[i].weight, rooms[i].buffer.get()});
  }
  return arrived;
}

void SegmentExchange::mix_into(std::span<void* const> addresses, StreamHandle stream) {
  if (program_.phases.empty()) return;
  std::vector<WeightedMessage> arrived;
  if (mixes_in_place()) {
    arrived = messages(0);
    measure(tensors(addresses, stream), arrived);
    if (is_push_sum_) take_push_sum_step(arrived);
  } else {
    arrived.push_back({work_->data(), {0, work_numel_}, work_dtype(), 1.0, work_.get()});
  }
  if (arrived.empty()) return;
  if (program_.replaces) {
    context_.device.replace(tensors(addresses, stream), wire_, arrived);
  } else {
    context_.device.mix(tensors(addresses, stream), wire_, arrived);
  }
}

// The message's data frames name it, and a peer may be anybody.
void SegmentExchange::require_weight(const Operation& operation) {
  const std::vector<Receive>& receives = program_.phases[operation.phase].receives;
  for (size_t i = 0; i < receives.size(); ++i) {
    if (receives[i].peer != operation.peer) continue;
    const double weight = inboxes(operation.phase)[i].sink->weight;
    if (std::isfinite(weight) && weight > 0.0) continue;
    throw TransportError(describe_segment(context_.plan, context_.segment) + ": rank " +
                         std::to_string(operation.peer) + " sent the push-sum weight " +
                         std::to_string(weight) + ", expected a finite one > 0");
  }
}

void SegmentExchange::take_push_sum_step(std::vector<WeightedMessage>& arrived) {
  const Phase& phase = program_.phases[0];
  std::vector<double> peers;
  peers.reserve(phase.receives.size());
  for (size_t i = 0; i < phase.receives.size(); ++i) {
    peers.push_back(inboxes(0)[i].sink->weight);
  }
  const PushSumStep step = push_sum_step(phase, weight_, peers);
  for (size_t i = 0; i < arrived.size(); ++i) arrived[i].weight = step.factors[i];
  weight_ = step.weight;
}

void SegmentExchange::release() {
  sources_.clear();
  for (std::vector<Inbox>& rooms : inboxes_) rooms.clear();
  work_.reset();
  packed_.reset();
  posted_.reset();
  notes_.reset();
}

}  // namespace crossover
