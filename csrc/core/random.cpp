#include "core/random.h"

namespace crossover {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9;
constexpr uint32_t kWeyl1 = 0xBB67AE85;
constexpr int kRounds = 10;

constexpr uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
constexpr uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

/// Word i of `Lanes` blocks at once, so that the compiler can use vector registers.
template <uint32_t Lanes>
using Word = std::array<uint32_t, Lanes>;

template <uint32_t Lanes>
void apply_rounds(std::array<Word<Lanes>, 4>& x, std::array<uint32_t, 2> key) {
  for (int round = 0; round < kRounds; ++round) {
    for (uint32_t lane = 0; lane < Lanes; ++lane) {
      const uint64_t product0 = uint64_t{kMultiplier0} * x[0][lane];
      const uint64_t product1 = uint64_t{kMultiplier1} * x[2][lane];
      x[0][lane] = high(product1) ^ x[1][lane] ^ key[0];
      x[1][lane] = low(product1);
      x[2][lane] = high(product0) ^ x[3][lane] ^ key[1];
      x[3][lane] = low(product0);
    }
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  std::array<Word<1>, 4> x{{{counter[0]}, {counter[1]}, {counter[2]}, {counter[3]}}};
  apply_rounds<1>(x, key);
  return {x[0][0], x[1][0], x[2][0], x[3][0]};
}

CounterStream::CounterStream(uint64_t seed, uint64_t round, uint32_t segment)
    : key_{low(seed), high(seed)}, counter_{0, segment, low(round), high(round)} {}

void CounterStream::refill() {
  std::array<Word<kBlocks>, 4> x;
  for (uint32_t block = 0; block < kBlocks; ++block) {
    x[0][block] = counter_[0] + block;
    x[1][block] = counter_[1];
    x[2][block] = counter_[2];
    x[3][block] = counter_[3];
  }
  apply_rounds<kBlocks>(x, key_);
  for (uint32_t block = 0; block < kBlocks; ++block) {
    for (uint32_t i = 0; i < 4; ++i) words_[4 * block + i] = x[i][block];
  }
  counter_[0] += kBlocks;
  used_ = 0;
}

}  // namespace crossover
