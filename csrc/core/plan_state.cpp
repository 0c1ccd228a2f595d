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

}  // namespace

PlanState::PlanState(uint32_t id, SegmentPlan plan, std::shared_ptr<const Schedule> schedule,
                     std::shared_ptr<Device> device, uint64_t first_round, int rank,
                     NonFinitePolicy non_finite)
    : id(id),
      plan(std::move(plan)),
      schedule(std::move(schedule)),
      device(std::move(device)),
      segments(this->plan.segments().size()) {
  for (uint32_t index = 0; index < segments.size(); ++index) {
    segments[index].round = first_round;
    segments[index].exchange = std::make_unique<SegmentExchange>(
        ExchangeContext{this->plan, *this->schedule, *this->device, id, index, rank, non_finite});
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
