#include "core/segment_exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace crossover {

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
    : context_(context), wire_(context.plan.wire(context.segment)) {}

MessageTag SegmentExchange::tag(uint32_t phase) const {
  return {context_.plan_id, context_.segment, round_, phase};
}

Dtype SegmentExchange::work_dtype() const {
  const bool wide = context_.plan.segment(context_.segment).dtype == Dtype::kFloat64;
  return wide ? Dtype::kFloat64 : Dtype::kFloat32;
}

uint64_t SegmentExchange::wire_bytes(const Slice& slice) const {
  return static_cast<uint64_t>(slice.numel()) * dtype_bytes(wire_);
}

TensorList SegmentExchange::tensors(std::span<void* const> addresses) const {
  const Segment& segment = context_.plan.segment(context_.segment);
  return {segment.dtype, addresses, segment.numels};
}

TensorList SegmentExchange::work() {
  return {work_dtype(), {&work_address_, 1}, {&work_numel_, 1}};
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
  const size_t num_phases = program_.phases.size();
  if (inboxes_.size() < num_phases) inboxes_.resize(num_phases);
  awaited_.assign(num_phases, 0);
  for (uint32_t phase = 0; phase < num_phases; ++phase) announce(phase, transport, operations);
}

void SegmentExchange::announce(uint32_t phase, Transport& transport, OperationTable& operations) {
  const std::vector<Receive>& receives = program_.phases[phase].receives;
  std::vector<Inbox>& inboxes = inboxes_[phase];
  if (inboxes.size() < receives.size()) inboxes.resize(receives.size());
  for (size_t i = 0; i < receives.size(); ++i) {
    const uint64_t bytes = wire_bytes(receives[i].slice);
    if (bytes == 0) continue;
    reserve(inboxes[i].buffer, bytes, context_.device);
    inboxes[i].sink = context_.device.sink(*inboxes[i].buffer, bytes);
    ++awaited_[phase];
    const uint64_t token = operations.add({this, false, phase, receives[i].peer, bytes});
    transport.receive(receives[i].peer, tag(phase), *inboxes[i].sink, token);
  }
}

bool SegmentExchange::begin(std::span<void* const> addresses, Transport& transport,
                            OperationTable& operations) {
  addresses_.assign(addresses.begin(), addresses.end());
  begun_ = true;
  if (!single_phase()) copy_to_work();
  if (!program_.phases.empty()) send_phase(transport, operations);
  return advance(transport, operations);
}

// work = Q(x): x packed into bytes, then the difference from zero mixed in with weight 1.
void SegmentExchange::copy_to_work() {
  const int64_t numel = context_.plan.segment(context_.segment).numel();
  const Slice whole{0, numel};
  const size_t bytes = wire_bytes(whole);
  const size_t work_bytes = static_cast<size_t>(numel) * dtype_bytes(work_dtype());
  reserve(packed_, bytes, context_.device);
  reserve(work_, work_bytes, context_.device);
  const auto source =
      context_.device.source({tensors(addresses_), whole, wire_, context_.non_finite,
                              describe_segment(context_.plan, context_.segment)});
  for (size_t at = 0; at < bytes;) at += source->produce({packed_->data() + at, bytes - at});
  std::memset(work_->data(), 0, work_bytes);
  work_address_ = work_->data();
  work_numel_ = numel;
  const WeightedMessage own{packed_->data(), whole, wire_, 1.0};
  context_.device.mix(work(), work_dtype(), {&own, 1});
}

void SegmentExchange::send_phase(Transport& transport, OperationTable& operations) {
  sources_.clear();
  unsent_ = 0;
  for (const Send& send : program_.phases[phase_].sends) {
    if (send.slice.numel() == 0) continue;
    sources_.push_back(context_.device.source({single_phase() ? tensors(addresses_) : work(),
                                               send.slice, wire_, context_.non_finite,
                                               describe_segment(context_.plan, context_.segment)}));
    ++unsent_;
    const uint64_t token = operations.add({this, true, phase_, send.peer, wire_bytes(send.slice)});
    transport.send(send.peer, tag(phase_), *sources_.back(), token);
  }
  transport.phase_posted(tag(phase_), phase_ + 1 == program_.phases.size());
}

bool SegmentExchange::on_complete(const Operation& operation, Transport& transport,
                                  OperationTable& operations) {
  if (operation.is_send) {
    --unsent_;
  } else {
    --awaited_[operation.phase];
  }
  return begun_ && advance(transport, operations);
}

bool SegmentExchange::advance(Transport& transport, OperationTable& operations) {
  while (phase_ < program_.phases.size()) {
    if (unsent_ > 0 || awaited_[phase_] > 0) return false;
    if (!single_phase()) {
      const std::vector<WeightedMessage> arrived = messages(phase_);
      if (!arrived.empty()) context_.device.mix(work(), wire_, arrived);
    }
    ++phase_;
    if (phase_ < program_.phases.size()) send_phase(transport, operations);
  }
  return true;
}

std::vector<WeightedMessage> SegmentExchange::messages(uint32_t phase) const {
  std::vector<WeightedMessage> arrived;
  const std::vector<Receive>& receives = program_.phases[phase].receives;
  for (size_t i = 0; i < receives.size(); ++i) {
    if (receives[i].slice.numel() == 0) continue;
    arrived.push_back(
        {inboxes_[phase][i].buffer->data(), receives[i].slice, wire_, receives[i].weight});
  }
  return arrived;
}

void SegmentExchange::mix_into(std::span<void* const> addresses) {
  if (program_.phases.empty()) return;
  std::vector<WeightedMessage> arrived;
  if (single_phase()) {
    arrived = messages(0);
  } else {
    arrived.push_back({work_->data(), {0, work_numel_}, work_dtype(), 1.0});
  }
  if (!arrived.empty()) context_.device.mix(tensors(addresses), wire_, arrived);
}

}  // namespace crossover
