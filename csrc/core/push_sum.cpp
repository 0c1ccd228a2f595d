#include "core/push_sum.h"

#include "core/error.h"

namespace crossover {

PushSumStep push_sum_step(const Phase& phase, double own, std::span<const double> peers) {
  check(peers.size() == phase.receives.size(), "one weight per receive");
  PushSumStep step{phase.keep * own, {}};
  for (size_t i = 0; i < peers.size(); ++i) {
    step.factors.push_back(phase.receives[i].weight * peers[i]);
    step.weight += step.factors.back();
  }
  for (double& factor : step.factors) factor /= step.weight;
  return step;
}

}  // namespace crossover
