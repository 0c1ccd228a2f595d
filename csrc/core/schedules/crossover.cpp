#include <numeric>
#include <utility>

#include "core/random.h"
#include "core/schedules/one_source.h"

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

std::vector<int> draw_derangement(CounterStream& stream, int size) {
  std::vector<int> permutation(size);
  std::iota(permutation.begin(), permutation.end(), 0);
  // A shuffle is uniform from any start, so a retry goes on from what the last one left.
  while (!try_derangement(stream, permutation)) continue;
  return permutation;
}

std::vector<int> draw_with_replacement(CounterStream& stream, int size) {
  std::vector<int> sources(size);
  for (int rank = 0; rank < size; ++rank) {
    const int other = static_cast<int>(stream.below(static_cast<uint32_t>(size) - 1));
    sources[rank] = other + (other >= rank ? 1 : 0);
  }
  return sources;
}

class CrossoverSchedule final : public OneSourceSchedule {
 public:
  CrossoverSchedule(int size, uint64_t seed, bool segmentwise, bool fair)
      : OneSourceSchedule("crossover", size, fair ? Stochasticity::kDoubly : Stochasticity::kRow),
        seed_(seed),
        segmentwise_(segmentwise),
        fair_(fair) {}

 protected:
  std::vector<int> sources(const RoundKey& key) const override {
    CounterStream stream(seed_, key.round, segmentwise_ ? key.segment : 0);
    return fair_ ? draw_derangement(stream, size()) : draw_with_replacement(stream, size());
  }

 private:
  const uint64_t seed_;
  const bool segmentwise_;
  const bool fair_;
};

}  // namespace

std::unique_ptr<PeerSchedule> crossover_schedule(int size, uint64_t seed, bool segmentwise,
                                                 bool fair) {
  return std::make_unique<CrossoverSchedule>(size, seed, segmentwise, fair);
}

}  // namespace crossover
