// Counter-based random numbers: any draw alone, without state to keep or replay.
#pragma once

#include <array>
#include <cstdint>

namespace crossover {

/// Philox4x32-10: four 32-bit words per (key, counter). Source: Salmon et al., "Parallel random
/// numbers: as easy as 1, 2, 3", SC 2011.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// The stream of words named by (seed, round, segment). Two streams with different names are
/// independent for every purpose here.
class CounterStream {
 public:
  CounterStream(uint64_t seed, uint64_t round, uint32_t segment);
  uint32_t next();
  /// Uniform over 0..bound-1, exactly (Lemire's multiplication with rejection). bound >= 1.
  uint32_t below(uint32_t bound);

 private:
  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> counter_;
  std::array<uint32_t, 4> words_{};
  unsigned used_ = 4;
};

}  // namespace crossover
