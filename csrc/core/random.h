// Counter-based random numbers: any draw alone, without state to keep or replay.
#pragma once

#include <array>
#include <cstdint>

namespace crossover {

/// Philox4x32-10: four 32-bit words per (key, counter). Source: Salmon et al., "Parallel random
/// numbers: as easy as 1, 2, 3", SC 2011.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// The stream of words named by (seed, round, segment). Two streams with different names are
/// independent for every purpose here. Word 4 b + i is word i of Philox with counter
/// (b, segment, low half of round, high half of round) and key (low, high half of seed); the
/// stream repeats after 2^34 words.
class CounterStream {
 public:
  CounterStream(uint64_t seed, uint64_t round, uint32_t segment);
  uint32_t next() {
    if (used_ == words_.size()) refill();
    return words_[used_++];
  }
  /// Uniform over 0..bound-1, exactly (Lemire's multiplication with rejection). bound >= 1.
  /// Source: Lemire, "Fast random integer generation in an interval", TOMACS 2019.
  uint32_t below(uint32_t bound) {
    uint64_t product = uint64_t{next()} * bound;
    if (static_cast<uint32_t>(product) < bound) {
      const uint32_t threshold = -bound % bound;
      while (static_cast<uint32_t>(product) < threshold) product = uint64_t{next()} * bound;
    }
    return static_cast<uint32_t>(product >> 32);
  }

 private:
  static constexpr uint32_t kBlocks = 32;  // so many at once keep the vector units busy
  void refill();

  const std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> counter_;
  std::array<uint32_t, 4 * kBlocks> words_{};
  uint32_t used_ = 4 * kBlocks;
};

}  // namespace crossover
