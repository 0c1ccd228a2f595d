#include <numeric>
#include <utility>

#include "core/random.h"
#include "core/schedules/permutation.h"

namespace crossover {
namespace {

/// Shuffles until the first fixed point among the final places; true if there was none.
bool try_derangement(CounterStream& stream, std::vector<int>& permutation) {
  for (size_t i = permutation.size() - 1; i > 0; --i) {
    std::swap(permutation[i], permutation[stream.below(static_cast<uint32_t>(i) + 1)]);
    if (permutation[i] == static_cast<int>(i)) return false;
  }
  return permutation[0] != 0;
}

class CrossoverSchedule final : public PermutationSchedule {
 public:
  CrossoverSchedule(int size, uint64_t seed)
      : PermutationSchedule("crossover", size), seed_(seed) {}

 protected:
  std::vector<int> sources(const RoundKey& key) const override {
    CounterStream stream(seed_, key.round, key.segment);
    std::vector<int> permutation(size());
    std::iota(permutation.begin(), permutation.end(), 0);
    // A shuffle is uniform from any start, so a retry goes on from what the last one left.
    while (!try_derangement(stream, permutation)) continue;
    return permutation;
  }

 private:
  const uint64_t seed_;
};

}  // namespace

std::unique_ptr<PeerSchedule> crossover_schedule(int size, uint64_t seed) {
  return std::make_unique<CrossoverSchedule>(size, seed);
}

}  // namespace crossover
