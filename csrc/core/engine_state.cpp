// What the training thread asks and sets between rounds.
#include <utility>

#include "core/engine.h"
#include "core/plan_state.h"

namespace crossover {

uint64_t Engine::round(uint32_t plan, uint32_t segment) const {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  return usable_plan(plan)->segments.at(segment).round;
}

void Engine::set_issue_order(uint32_t plan, std::vector<uint32_t> order) {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  PlanState& state = *usable_plan(plan);
  if (state.is_open()) {
    throw InvalidArgument("set_issue_order: plan " + std::to_string(plan) + " has an open round");
  }
  state.plan.set_issue_order(std::move(order));
}

bool Engine::is_open(uint32_t plan) const {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  const std::shared_ptr<PlanState> state = find_plan(plan);
  return state && state->is_open();
}

std::vector<double> Engine::weights(uint32_t plan) const {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  std::vector<double> weights;
  for (const SegmentState& segment : usable_plan(plan)->segments) {
    weights.push_back(segment.exchange->weight());
  }
  return weights;
}

void Engine::set_weights(uint32_t plan, std::span<const double> weights) {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  PlanState& state = *usable_plan(plan);
  if (state.is_open()) {
    throw InvalidArgument("set_weights: plan " + std::to_string(plan) + " has an open round");
  }
  state.require_weights(weights);
  for (size_t i = 0; i < weights.size(); ++i) state.segments[i].exchange->set_weight(weights[i]);
}

std::vector<Difference> Engine::differences(uint32_t plan) const {
  check_not_forked();
  const std::lock_guard lock(mutex_);
  const PlanState& state = *usable_plan(plan);
  if (state.is_open()) {
    throw InvalidArgument("differences: plan " + std::to_string(plan) + " has an open round");
  }
  std::vector<Difference> found;
  found.reserve(state.segments.size());
  for (const SegmentState& segment : state.segments) {
    found.push_back(segment.exchange->difference());
  }
  return found;
}

}  // namespace crossover
