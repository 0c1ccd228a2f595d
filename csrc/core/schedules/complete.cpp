#include <numeric>

#include "core/schedules/circulant.h"

namespace crossover {

std::unique_ptr<PeerSchedule> complete_schedule(int size) {
  require_size("complete", size);
  CirculantSchedule::Offsets everyone(size - 1);
  std::iota(everyone.begin(), everyone.end(), 1);
  return std::make_unique<CirculantSchedule>("complete", size, std::vector(1, everyone));
}

}  // namespace crossover
