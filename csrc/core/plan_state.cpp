#include "core/plan_state.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace crossover {
namespace {

template <typename Transfers>
std::string peers(const Transfers& transfers) {
  std::string text;
  for (const auto& transfer : transfers) {
    text += (text.empty() ? "" : ", ") + std::to_string(transfer.peer);
  }
  return text.empty() ? "nobody" : text;
}

/// Messages of this many segments, if all were as large as the largest.
constexpr uint64_t kFewSegments = 4;

uint64_t largest_wire_bytes(const SegmentPlan& plan) {
  uint64_t largest = 0;
  for (uint32_t index = 0; index < plan.segments().size(); ++index) {
    const uint64_t bytes = packed_bytes(plan.wire(index), plan.segment(index).numel());
    largest = std::max(largest, bytes);
  }
  return largest;
}

}  // namespace

FewRooms::FewRooms(const SegmentPlan& plan, Device& device)
    : plan_(plan), budget_bytes_(kFewSegments * largest_wire_bytes(plan)), pool_(device) {}

std::optional<uint32_t> FewRooms::next(std::span<const SegmentState> segments) const {
  if (held_bytes_.size() == segments.size()) return {};
  const uint32_t index = plan_.issue_order()[given_ % segments.size()];
  const uint64_t bytes = segments[index].exchange->room_bytes();
  if (!held_bytes_.empty() && total_held_bytes_ + bytes > budget_bytes_) return {};
  return index;
}

void FewRooms::give(uint64_t bytes) {
  ++given_;
  held_bytes_.push_back(bytes);
  total_held_bytes_ += bytes;
}

void FewRooms::take_back() {
  total_held_bytes_ -= held_bytes_.front();
  held_bytes_.pop_front();
}

PlanState::PlanState(uint32_t id, SegmentPlan plan, std::shared_ptr<const Schedule> schedule,
                     std::shared_ptr<Device> device, uint64_t first_round, int rank,
                     NonFinitePolicy non_finite, Rooms rooms)
    : id(id),
      plan(std::move(plan)),
      schedule(std::move(schedule)),
      device(std::move(device)),
      segments(this->plan.segments().size()) {
  if (rooms == Rooms::kFew) few_rooms.emplace(this->plan, *this->device);
  BufferPool* const pool = few_rooms ? &few_rooms->pool() : nullptr;
  for (uint32_t index = 0; index < segments.size(); ++index) {
    segments[index].round = first_round;
    segments[index].exchange = std::make_unique<SegmentExchange>(ExchangeContext{
        this->plan, *this->schedule, *this->device, id, index, rank, non_finite, pool});
  }
}

bool PlanState::is_open() const {
  for (const SegmentState& state : segments) {
    if (state.stage != Stage::kIdle) return true;
  }
  return false;
}

void PlanState::require_weights(std::span<const double> weights) const {
  if (weights.size() != segments.size()) {
    throw InvalidArgument("push-sum weights: expected " + std::to_string(segments.size()) +
                          ", one per segment, got " + std::to_string(weights.size()));
  }
  const bool is_push_sum = schedule->stochasticity() == Stochasticity::kColumn;
  for (size_t i = 0; i < weights.size(); ++i) {
    const bool valid = is_push_sum ? std::isfinite(weights[i]) && weights[i] > 0 : weights[i] == 1;
    if (valid) continue;
    const std::string wanted = is_push_sum
                                   ? "a finite number > 0"
                                   : "1 in schedule '" + std::string(schedule->name()) + "'";
    throw InvalidArgument(describe_segment(plan, static_cast<uint32_t>(i)) +
                          ", push-sum weight: expected " + wanted + ", got " +
                          std::to_string(weights[i]));
  }
}

uint32_t PlanState::current_segment() const {
  for (const uint32_t index : plan.issue_order()) {
    if (segments[index].stage != Stage::kIdle) return index;
  }
  return plan.issue_order().front();
}

std::string PlanState::place(uint32_t segment, int rank) const {
  const uint64_t round = segments[segment].round;
  std::string text = "plan " + std::to_string(id) + ", round " + std::to_string(round) + ", " +
                     describe_segment(plan, segment);
  const Program program = schedule->program({round, segment}, plan.segment(segment).numel(), rank);
  for (const Phase& phase : program.phases) {
    text += " (send to " + peers(phase.sends) + ", receive from " + peers(phase.receives) + ")";
  }
  return text;
}

std::string spell_ranks(std::vector<int> ranks) {
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

}  // namespace crossover
