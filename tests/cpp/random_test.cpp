#include "core/random.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

namespace crossover {
namespace {

using Block = std::array<uint32_t, 4>;
constexpr uint32_t kOnes = 0xffffffff;

uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

TEST(Philox, matches_the_published_vector_of_zeros) {
  const Block expected{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), expected);
}

TEST(Philox, matches_the_published_vector_of_ones) {
  const Block expected{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd};
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}), expected);
}

TEST(Philox, matches_the_published_vector_of_pi) {
  const Block expected{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1};
  const Block counter{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344};
  EXPECT_EQ(philox4x32(counter, {0xa4093822, 0x299f31d0}), expected);
}

TEST(CounterStream, is_philox_of_block_segment_and_round_keyed_by_the_seed) {
  const uint64_t seed = 0x0123456789abcdef;
  const uint64_t round = 0xfedcba9876543210;
  const uint32_t segment = 0x13572468;
  CounterStream stream(seed, round, segment);
  for (uint32_t block = 0; block < 100; ++block) {
    const Block expected =
        philox4x32({block, segment, low(round), high(round)}, {low(seed), high(seed)});
    for (uint32_t word : expected) ASSERT_EQ(stream.next(), word) << "block " << block;
  }
}

TEST(CounterStream, gives_other_words_for_another_seed_round_or_segment) {
  const uint64_t top_bit = uint64_t{1} << 63;
  const uint32_t word = CounterStream(1, 2, 3).next();
  EXPECT_NE(CounterStream(1 | top_bit, 2, 3).next(), word);
  EXPECT_NE(CounterStream(1, 2 | top_bit, 3).next(), word);
  EXPECT_NE(CounterStream(1, 2, 4).next(), word);
}

TEST(CounterStream, below_one_is_zero) {
  CounterStream stream(0, 0, 0);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(stream.below(1), 0u);
}

TEST(CounterStream, below_takes_the_high_half_of_the_product_and_rejects_the_uneven_rest) {
  const uint32_t bound = 0xC0000000;  // a quarter of the words map to no further value
  CounterStream stream(5, 6, 7);
  CounterStream words(5, 6, 7);
  for (int i = 0; i < 1000; ++i) {
    uint64_t product = uint64_t{words.next()} * bound;
    while (low(product) < (uint64_t{1} << 32) % bound) product = uint64_t{words.next()} * bound;
    ASSERT_EQ(stream.below(bound), high(product));
  }
}

TEST(CounterStream, below_fills_every_value_evenly) {
  constexpr uint32_t kBound = 7;
  constexpr int kDraws = 70000;
  std::vector<int> counts(kBound);
  CounterStream stream(11, 12, 13);
  for (int i = 0; i < kDraws; ++i) ++counts.at(stream.below(kBound));
  double chi_square = 0.0;
  const double expected = double{kDraws} / kBound;
  for (int count : counts) chi_square += (count - expected) * (count - expected) / expected;
  EXPECT_LT(chi_square, 22.46);  // 99.9 % of 6 degrees of freedom
}

}  // namespace
}  // namespace crossover
