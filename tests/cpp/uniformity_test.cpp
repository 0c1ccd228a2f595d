// Chi-square tests of the schedules with chance, with fixed seeds: they pass or fail for good.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "core/schedule.h"

namespace crossover {
namespace {

using Map = std::vector<int>;

Map sources(const PeerSchedule& schedule, const RoundKey& key) {
  Map map;
  for (const PeerRow& row : schedule.rows(key)) map.push_back(row.at(0).peer);
  return map;
}

/// Every derangement of `size`, by trying all permutations.
std::vector<Map> all_derangements(int size) {
  std::vector<Map> found;
  Map map(size);
  std::iota(map.begin(), map.end(), 0);
  do {
    bool fixed = false;
    for (int rank = 0; rank < size; ++rank) fixed = fixed || map[rank] == rank;
    if (!fixed) found.push_back(map);
  } while (std::ranges::next_permutation(map).found);
  return found;
}

/// What chi-square exceeds with the probability that a normal variable exceeds `z`
/// (Wilson and Hilferty, 1931).
double chi_square_quantile(double freedom, double z) {
  const double spread = 2.0 / (9.0 * freedom);
  return freedom * std::pow(1.0 - spread + z * std::sqrt(spread), 3);
}

/// Expects observed counts that are neither too far from the expected ones nor too close to them,
/// each at 1 in 4000.
void expect_plausible(const std::vector<double>& observed, const std::vector<double>& expected) {
  double chi_square = 0.0;
  for (size_t cell = 0; cell < observed.size(); ++cell) {
    chi_square += std::pow(observed[cell] - expected[cell], 2) / expected[cell];
  }
  const double freedom = static_cast<double>(observed.size()) - 1.0;
  EXPECT_LT(chi_square, chi_square_quantile(freedom, 3.5));
  EXPECT_GT(chi_square, chi_square_quantile(freedom, -3.5));
}

void expect_uniform(const std::vector<double>& observed) {
  const double draws = std::accumulate(observed.begin(), observed.end(), 0.0);
  const double expected = draws / static_cast<double>(observed.size());
  expect_plausible(observed, std::vector<double>(observed.size(), expected));
}

/// The index of a derangement of a small size among all of them.
class Index {
 public:
  explicit Index(int size) {
    for (const Map& map : all_derangements(size)) index_.emplace(map, index_.size());
  }
  size_t size() const { return index_.size(); }
  size_t operator()(const Map& map) const { return index_.at(map); }

 private:
  std::map<Map, size_t> index_;
};

/// Counts how often each of the 9 x 9 pairs of derangements of 4 ranks is drawn by `first(i)` and
/// `second(i)`.
template <typename First, typename Second>
void expect_independent(const First& first, const Second& second) {
  const Index index(4);
  std::vector<double> counts(index.size() * index.size());
  for (uint32_t i = 0; i < 40500; ++i) {
    ++counts[index(first(i)) * index.size() + index(second(i))];
  }
  expect_uniform(counts);
}

TEST(CrossoverUniformity, draws_all_nine_derangements_of_four_ranks_evenly) {
  const Index index(4);
  ASSERT_EQ(index.size(), 9u);
  const auto schedule = crossover_schedule(4, 0);
  std::vector<double> counts(9);
  for (uint64_t round = 0; round < 90000; ++round) ++counts[index(sources(*schedule, {round, 0}))];
  expect_uniform(counts);
}

TEST(CrossoverUniformity, draws_all_forty_four_derangements_of_five_ranks_evenly) {
  const Index index(5);
  ASSERT_EQ(index.size(), 44u);
  const auto schedule = crossover_schedule(5, 0);
  std::vector<double> counts(44);
  for (uint64_t round = 0; round < 88000; ++round) ++counts[index(sources(*schedule, {round, 0}))];
  expect_uniform(counts);
}

TEST(CrossoverUniformity, draws_evenly_over_segments_and_over_seeds_too) {
  const Index index(4);
  const auto schedule = crossover_schedule(4, 0);
  std::vector<double> by_segment(9), by_seed(9);
  for (uint32_t i = 0; i < 45000; ++i) {
    ++by_segment[index(sources(*schedule, {0, i}))];
    ++by_seed[index(sources(*crossover_schedule(4, i), {0, 0}))];
  }
  expect_uniform(by_segment);
  expect_uniform(by_seed);
}

TEST(CrossoverUniformity, gives_each_of_eight_ranks_every_other_as_source_evenly) {
  constexpr int kSize = 8;
  const auto schedule = crossover_schedule(kSize, 0);
  std::vector<std::vector<double>> counts(kSize, std::vector<double>(kSize - 1));
  for (uint64_t round = 0; round < 70000; ++round) {
    const Map map = sources(*schedule, {round, 0});
    for (int rank = 0; rank < kSize; ++rank) {
      ++counts[rank][map[rank] < rank ? map[rank] : map[rank] - 1];
    }
  }
  for (const std::vector<double>& row : counts) expect_uniform(row);
}

TEST(CrossoverUniformity, gives_two_of_eight_ranks_their_sources_as_all_derangements_do) {
  const std::vector<Map> all = all_derangements(8);
  ASSERT_EQ(all.size(), 14833u);
  constexpr uint64_t kDraws = 70000;
  std::map<std::pair<int, int>, double> expected, observed;
  for (const Map& map : all) {
    expected[{map[2], map[5]}] += double{kDraws} / static_cast<double>(all.size());
  }
  const auto schedule = crossover_schedule(8, 1);
  for (uint64_t round = 0; round < kDraws; ++round) {
    const Map map = sources(*schedule, {round, 0});
    ++observed[{map[2], map[5]}];
  }
  ASSERT_EQ(observed.size(), expected.size());
  std::vector<double> expected_counts, observed_counts;
  for (const auto& [pair, count] : expected) {
    expected_counts.push_back(count);
    observed_counts.push_back(observed[pair]);
  }
  expect_plausible(observed_counts, expected_counts);
}

TEST(CrossoverUniformity, draws_consecutive_rounds_independently) {
  const auto schedule = crossover_schedule(4, 2);
  expect_independent([&](uint32_t i) { return sources(*schedule, {2 * uint64_t{i}, 0}); },
                     [&](uint32_t i) { return sources(*schedule, {2 * uint64_t{i} + 1, 0}); });
}

TEST(CrossoverUniformity, draws_consecutive_segments_independently) {
  const auto schedule = crossover_schedule(4, 2);
  expect_independent([&](uint32_t i) { return sources(*schedule, {i, 0}); },
                     [&](uint32_t i) { return sources(*schedule, {i, 1}); });
}

TEST(CrossoverUniformity, draws_the_next_segment_of_the_next_round_independently) {
  const auto schedule = crossover_schedule(4, 2);
  expect_independent([&](uint32_t i) { return sources(*schedule, {2 * uint64_t{i}, 3}); },
                     [&](uint32_t i) { return sources(*schedule, {2 * uint64_t{i} + 1, 4}); });
}

TEST(CrossoverUniformity, draws_neighbouring_seeds_independently) {
  const auto even = crossover_schedule(4, 2);
  const auto odd = crossover_schedule(4, 3);
  expect_independent([&](uint32_t i) { return sources(*even, {i, 0}); },
                     [&](uint32_t i) { return sources(*odd, {i, 0}); });
}

TEST(CrossoverUniformity, of_noseg_is_that_of_one_map_for_all_segments) {
  const auto noseg = crossover_schedule(5, 0, false);
  const auto full = crossover_schedule(5, 0);
  for (uint64_t round = 0; round < 20; ++round) {
    EXPECT_EQ(noseg->rows({round, 7}), full->rows({round, 0}));
  }
}

TEST(NofairnessUniformity, draws_all_eighty_one_maps_of_four_ranks_evenly) {
  const auto schedule = crossover_schedule(4, 0, true, false);
  std::map<Map, double> counts;
  for (uint64_t round = 0; round < 81000; ++round) ++counts[sources(*schedule, {round, 0})];
  std::vector<double> observed;
  for (const auto& [map, count] : counts) observed.push_back(count);
  ASSERT_EQ(observed.size(), 81u);
  expect_uniform(observed);
}

TEST(ShiftUniformity, draws_every_shift_evenly_and_independently_over_segments) {
  const auto schedule = shift_schedule(8, 0);
  std::vector<double> counts(7), pairs(49);
  for (uint64_t round = 0; round < 49000; ++round) {
    const int first = sources(*schedule, {round, 0})[0] - 1;
    const int second = sources(*schedule, {round, 1})[0] - 1;
    ++counts[first];
    ++pairs[7 * first + second];
  }
  expect_uniform(counts);
  expect_uniform(pairs);
}

TEST(GroupUniformity, draws_all_ten_partitions_of_six_ranks_into_threes_evenly) {
  const auto schedule = group_crossover_schedule(6, 3, 0);
  std::map<Map, double> counts;
  for (uint64_t round = 0; round < 20000; ++round) {
    Map group;
    const Program program = schedule->program({round, 2}, 3 * 128, 0);
    for (const Receive& receive : program.phases[0].receives) group.push_back(receive.peer);
    std::ranges::sort(group);
    ++counts[group];
  }
  std::vector<double> observed;
  for (const auto& [group, count] : counts) observed.push_back(count);
  ASSERT_EQ(observed.size(), 10u);
  expect_uniform(observed);
}

/// Theory: E |Pi W x|^2 = (n - 2) / (2 (n - 1)) |Pi x|^2, with Pi the projection off the mean.
TEST(CrossoverUniformity, shrinks_the_distance_to_the_mean_by_the_factor_of_theory) {
  for (int size : {4, 8, 16, 32, 64}) {
    const auto schedule = crossover_schedule(size, 4);
    constexpr int kRounds = 20000;
    double after = 0.0;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const Map map = sources(*schedule, {round, 0});
      // x = e_0 - e_1, so that Wx has half of each at its owner and half at its receiver.
      Map x(size);
      x[0] = 1;
      x[1] = -1;
      for (int rank = 0; rank < size; ++rank) after += std::pow((x[rank] + x[map[rank]]) / 2.0, 2);
    }
    const double factor = after / kRounds / 2.0;
    EXPECT_NEAR(factor, (size - 2.0) / (2.0 * (size - 1.0)), 0.01) << "size " << size;
  }
}

}  // namespace
}  // namespace crossover
