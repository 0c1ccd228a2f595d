#include "core/schedules/matching.h"

namespace crossover {
namespace {

int ceil_log2(int size) {
  int log = 0;
  while ((int64_t{1} << log) < size) ++log;
  return log;
}

class ExponentialXorSchedule final : public MatchingSchedule {
 public:
  explicit ExponentialXorSchedule(int size)
      : MatchingSchedule("exponential-xor", size), num_phases_(ceil_log2(size)) {}

 protected:
  std::optional<WeightedPeer> partner(const RoundKey& key, int rank) const override {
    if (size() == 1) return std::nullopt;
    const uint64_t phase = (key.round % num_phases_ + key.segment % num_phases_) % num_phases_;
    const int other = rank ^ (1 << phase);
    if (other >= size()) return std::nullopt;
    return WeightedPeer{other, 0.5};
  }

 private:
  const uint64_t num_phases_;
};

}  // namespace

std::unique_ptr<PeerSchedule> exponential_xor_schedule(int size) {
  return std::make_unique<ExponentialXorSchedule>(size);
}

}  // namespace crossover
