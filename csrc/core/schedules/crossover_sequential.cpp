#include <algorithm>
#include <mutex>
#include <numeric>
#include <random>
#include <string>

#include "core/error.h"
#include "core/schedules/one_source.h"

namespace crossover {
namespace {

/// numpy's RandomState(seed).random_sample(): 53 bits from two words.
class LegacyUniform {
 public:
  explicit LegacyUniform(uint32_t seed) : words_(seed) {}
  double next() {
    const double upper = static_cast<double>(words_() >> 5);
    const double lower = static_cast<double>(words_() >> 6);
    return (upper * 67108864.0 + lower) / 9007199254740992.0;
  }

 private:
  std::mt19937 words_;
};

/// Where `u` falls in the cumulated probabilities of `count` equal choices, each added up and
/// divided as numpy does it, so that even the roundings agree.
size_t choose(double u, size_t count) {
  const double probability = 1.0 / static_cast<double>(count);
  double total = 0.0;
  for (size_t k = 0; k < count; ++k) total += probability;
  double cumulated = 0.0;
  for (size_t k = 0; k + 1 < count; ++k) {
    cumulated += probability;
    if (u < cumulated / total) return k;
  }
  return count - 1;
}

/// Takes choice `index` out of the unused sources, `receiver` itself not counted.
int take(std::vector<int>& unused, size_t index, int receiver) {
  auto source = unused.begin() + static_cast<ptrdiff_t>(index);
  const auto own = std::ranges::lower_bound(unused, receiver);
  if (own != unused.end() && *own == receiver && source >= own) ++source;
  const int taken = *source;
  unused.erase(source);
  return taken;
}

std::vector<int> next_map(LegacyUniform& uniform, int size) {
  std::vector<int> unused(size);
  std::iota(unused.begin(), unused.end(), 0);
  std::vector<int> map(size);
  for (int receiver = 0; receiver < size; ++receiver) {
    if (receiver == size - 2 && unused.back() == size - 1) {
      map[receiver] = unused.back();
      unused.pop_back();
      continue;
    }
    const size_t own = std::ranges::binary_search(unused, receiver) ? 1 : 0;
    map[receiver] = take(unused, choose(uniform.next(), unused.size() - own), receiver);
  }
  return map;
}

class CrossoverSequentialSchedule final : public OneSourceSchedule {
 public:
  CrossoverSequentialSchedule(int size, uint32_t seed, uint32_t num_segments)
      : OneSourceSchedule("crossover-sequential", size, Stochasticity::kDoubly),
        seed_(seed),
        maps_(num_segments),
        uniform_(seed) {
    if (num_segments == 0) {
      throw InvalidArgument("crossover-sequential: num_segments: expected at least 1, got 0");
    }
  }

 protected:
  std::vector<int> sources(const RoundKey& key) const override {
    if (key.segment >= maps_.size()) {
      throw InvalidArgument("crossover-sequential: segment " + std::to_string(key.segment) +
                            ": made for " + std::to_string(maps_.size()) + " segments");
    }
    const std::lock_guard lock(mutex_);
    if (num_drawn_ > 0 && key.round < num_drawn_ - 1) {
      uniform_ = LegacyUniform(seed_);
      num_drawn_ = 0;
    }
    for (; num_drawn_ <= key.round; ++num_drawn_) {
      for (std::vector<int>& map : maps_) map = next_map(uniform_, size());
    }
    return maps_[key.segment];
  }

 private:
  const uint32_t seed_;
  mutable std::mutex mutex_;
  // Guarded by mutex_: the maps of round num_drawn_ - 1, and the generator just after them.
  mutable std::vector<std::vector<int>> maps_;
  mutable LegacyUniform uniform_;
  mutable uint64_t num_drawn_ = 0;
};

}  // namespace

std::unique_ptr<PeerSchedule> crossover_sequential_schedule(int size, uint32_t seed,
                                                            uint32_t num_segments) {
  return std::make_unique<CrossoverSequentialSchedule>(size, seed, num_segments);
}

}  // namespace crossover
