#include "core/schedules/circulant.h"

namespace crossover {

std::unique_ptr<PeerSchedule> exponential_schedule(int size) {
  require_size("exponential", size);
  std::vector<CirculantSchedule::Offsets> phases;
  for (int64_t hop = 1; hop < size; hop *= 2) phases.push_back({static_cast<int>(size - hop)});
  if (phases.empty()) phases.emplace_back();
  return std::make_unique<CirculantSchedule>("exponential", size, std::move(phases));
}

}  // namespace crossover
