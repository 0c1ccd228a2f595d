#include "core/schedules/circulant.h"

namespace crossover {
namespace {

CirculantSchedule::Offsets both_sides(int size) {
  if (size == 1) return {};
  if (size == 2) return {1};
  return {1, size - 1};
}

}  // namespace

std::unique_ptr<PeerSchedule> ring_schedule(int size) {
  require_size("ring", size);
  return std::make_unique<CirculantSchedule>("ring", size, std::vector(1, both_sides(size)));
}

}  // namespace crossover
