#include "core/plan_state.h"

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

std::string PlanState::sources(uint32_t segment, int rank) const {
  const RoundKey key{segments[segment].round, segment};
  const Program program = schedule->program(key, plan.segment(segment).numel(), rank);
  std::string text;
  for (const Phase& phase : program.phases) {
    text += (text.empty() ? "" : ", ") + peers(phase.receives);
  }
  return "rank " + text;
}

}  // namespace crossover
