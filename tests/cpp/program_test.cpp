// Schedules whose programs have several phases: matched, bounded, and with the averages they claim.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <string>
#include <tuple>

#include "core/error.h"
#include "core/schedule.h"
#include "core/schedules/group_average.h"

namespace crossover {
namespace {

using Values = std::vector<std::vector<double>>;  // per rank, per element

struct Named {
  std::string label;
  std::shared_ptr<const Schedule> schedule;
};

std::vector<Named> every_program(int size) {
  std::vector<Named> all;
  const auto add = [&](const std::string& label, std::shared_ptr<const Schedule> schedule) {
    all.push_back({label, std::move(schedule)});
  };
  add("all-reduce", all_reduce_schedule(size));
  add("mixed-radix", mixed_radix_schedule(size, {}));
  for (int m : {1, 2, 3, 4}) {
    add("groups of " + std::to_string(m), group_crossover_schedule(size, m, 5));
  }
  add("three rounds", repeated_schedule(exponential_xor_schedule(size), 3));
  add("two rounds of groups", repeated_schedule(group_crossover_schedule(size, 3, 5), 2));
  add("now and then exact", exact_average_schedule(crossover_schedule(size, 5), 3, 1));
  return all;
}

std::vector<Program> programs(const Schedule& schedule, const RoundKey& key, int64_t numel) {
  std::vector<Program> all;
  for (int rank = 0; rank < schedule.size(); ++rank) {
    all.push_back(schedule.program(key, numel, rank));
  }
  return all;
}

/// What the ranks hold after their programs, in exact form.
Values after(const std::vector<Program>& all, Values values) {
  size_t num_phases = 0;
  for (const Program& program : all) num_phases = std::max(num_phases, program.phases.size());
  for (size_t phase = 0; phase < num_phases; ++phase) {
    const Values before = values;
    for (size_t rank = 0; rank < all.size(); ++rank) {
      if (phase >= all[rank].phases.size()) continue;
      for (const Receive& r : all[rank].phases[phase].receives) {
        for (int64_t k = r.slice.begin; k < r.slice.end; ++k) {
          values[rank][k] += r.weight * (before[r.peer][k] - before[rank][k]);
        }
      }
    }
  }
  return values;
}

Values numbers(int size, int64_t numel) {
  Values values(size, std::vector<double>(numel));
  for (int rank = 0; rank < size; ++rank) {
    for (int64_t k = 0; k < numel; ++k)
      values[rank][k] = rank * rank + 0.5 * static_cast<double>(k);
  }
  return values;
}

double mean(const Values& values, int64_t element) {
  double sum = 0.0;
  for (const auto& own : values) sum += own[element];
  return sum / static_cast<double>(values.size());
}

int64_t sent_numel(const std::vector<Program>& all) {
  int64_t total = 0;
  for (const Program& program : all) {
    for (const Phase& phase : program.phases) {
      for (const Send& send : phase.sends) total += send.slice.numel();
    }
  }
  return total;
}

TEST(EveryProgram, meets_each_message_with_one_receive_and_sends_one_to_a_peer_at_most) {
  for (int size : {1, 2, 3, 4, 5, 6, 8, 12, 13}) {
    for (const auto& [label, schedule] : every_program(size)) {
      for (uint64_t round = 0; round < 5; ++round) {
        std::map<std::tuple<size_t, int, int>, Slice> sent, received;
        const std::vector<Program> all = programs(*schedule, {round, 3}, 1000);
        for (int rank = 0; rank < size; ++rank) {
          const std::vector<Phase>& phases = all[rank].phases;
          ASSERT_LE(static_cast<int>(phases.size()), schedule->num_phases({round, 3})) << label;
          for (size_t phase = 0; phase < phases.size(); ++phase) {
            for (const Send& s : phases[phase].sends) {
              ASSERT_TRUE(sent.emplace(std::tuple(phase, rank, s.peer), s.slice).second) << label;
            }
            for (const Receive& r : phases[phase].receives) {
              if (r.peer == rank) continue;
              ASSERT_TRUE(received.emplace(std::tuple(phase, r.peer, rank), r.slice).second);
            }
          }
        }
        ASSERT_EQ(sent, received) << label << ", size " << size << ", round " << round;
      }
    }
  }
}

TEST(EveryProgram, keeps_the_mean_of_every_element) {
  for (int size : {2, 3, 5, 8, 12}) {
    for (const auto& [label, schedule] : every_program(size)) {
      for (int64_t numel : {1, 15, 100}) {
        const Values before = numbers(size, numel);
        const Values mixed = after(programs(*schedule, {2, 1}, numel), before);
        for (int64_t k = 0; k < numel; ++k) {
          ASSERT_NEAR(mean(mixed, k), mean(before, k), 1e-9) << label;
        }
      }
    }
  }
}

TEST(EveryProgram, is_idle_for_an_empty_segment_and_for_one_rank) {
  for (const auto& [label, schedule] : every_program(4)) {
    EXPECT_TRUE(schedule->program({0, 0}, 0, 1).phases.empty()) << label;
  }
  for (const auto& [label, schedule] : every_program(1)) {
    EXPECT_TRUE(schedule->program({0, 0}, 10, 0).phases.empty()) << label;
  }
}

TEST(EveryProgram, refuses_a_rank_outside_the_job) {
  for (const auto& [label, schedule] : every_program(4)) {
    EXPECT_THROW(schedule->program({0, 0}, 1, 4), InvalidArgument) << label;
    EXPECT_THROW(schedule->program({0, 0}, 1, -1), InvalidArgument) << label;
  }
}

TEST(AllReduce, leaves_the_mean_of_every_element_on_every_rank) {
  for (int size = 1; size <= 13; ++size) {
    for (int64_t numel : {1, 16, 17, 1000}) {
      const Values before = numbers(size, numel);
      const Values mixed = after(programs(*all_reduce_schedule(size), {0, 0}, numel), before);
      for (const auto& own : mixed) {
        for (int64_t k = 0; k < numel; ++k) ASSERT_NEAR(own[k], mean(before, k), 1e-9);
      }
    }
  }
}

TEST(AllReduce, moves_two_times_n_minus_one_over_n_segments_per_rank) {
  for (int size = 1; size <= 13; ++size) {
    EXPECT_EQ(sent_numel(programs(*all_reduce_schedule(size), {0, 0}, 1000)), 2000 * (size - 1));
  }
}

TEST(Parts, are_aligned_cover_everything_and_differ_by_a_unit) {
  for (int64_t numel : {0, 1, 128, 129, 1000, 16384}) {
    for (int count : {1, 2, 3, 7, 64}) {
      int64_t end = 0;
      for (int index = 0; index < count; ++index) {
        const Slice part = part_of(numel, count, index);
        EXPECT_EQ(part.begin, end);
        EXPECT_TRUE(part.begin % 128 == 0 || part.begin == numel);
        EXPECT_LE(part.numel(), numel / count + 128);
        end = part.end;
      }
      EXPECT_EQ(end, numel);
    }
  }
}

/// Sizes of the groups, ascending: their members hold the same afterwards.
std::vector<int> group_sizes(const Schedule& schedule, const RoundKey& key) {
  std::map<int64_t, int> count;  // by what they hold, to the roundings
  Values values(schedule.size());
  for (int rank = 0; rank < schedule.size(); ++rank) values[rank] = {std::exp2(rank)};
  for (const auto& own : after(programs(schedule, key, 1), values))
    ++count[std::llround(own[0] * 1e4)];
  std::vector<int> sizes;
  for (const auto& [value, members] : count) sizes.push_back(members);
  std::ranges::sort(sizes);
  return sizes;
}

TEST(GroupCrossover, has_as_many_groups_as_needed_of_sizes_that_differ_by_one_at_most) {
  for (int size = 1; size <= 20; ++size) {
    for (int m = 1; m <= 21; ++m) {
      const std::vector<int> sizes = group_sizes(*group_crossover_schedule(size, m, 2), {4, 1});
      EXPECT_EQ(static_cast<int>(sizes.size()), (size + m - 1) / m);
      EXPECT_LE(sizes.back() - sizes.front(), 1);
      EXPECT_LE(sizes.back(), m);
    }
  }
}

TEST(GroupCrossover, moves_two_times_m_minus_one_over_m_segments_per_rank) {
  for (int m : {2, 3, 4, 6}) {
    const auto all = programs(*group_crossover_schedule(12, m, 2), {4, 1}, 960);
    EXPECT_EQ(sent_numel(all), int64_t{960} * 12 * 2 * (m - 1) / m);
    EXPECT_EQ(all[0].phases.size(), m == 2 ? 1u : 2u);
  }
}

TEST(GroupCrossover, draws_every_segment_and_round_anew) {
  const auto schedule = group_crossover_schedule(12, 3, 2);
  const auto drawn = [&](const RoundKey& key) {
    return after(programs(*schedule, key, 1), numbers(12, 1));
  };
  EXPECT_NE(drawn({4, 2}), drawn({4, 1}));
  EXPECT_NE(drawn({5, 1}), drawn({4, 1}));
  EXPECT_EQ(drawn({4, 1}), drawn({4, 1}));
}

TEST(Repeated, starts_the_phases_of_each_round_together_on_every_rank) {
  // Of 5 ranks 4 is idle in rounds 0 and 1, and meets 0 in round 2.
  const auto schedule = repeated_schedule(exponential_xor_schedule(5), 3);
  EXPECT_EQ(schedule->num_phases({0, 0}), 3);
  const std::vector<Program> all = programs(*schedule, {0, 0}, 10);
  ASSERT_EQ(all[4].phases.size(), 3u);
  EXPECT_TRUE(all[4].phases[0].sends.empty() && all[4].phases[1].receives.empty());
  EXPECT_EQ(all[4].phases[2].sends.at(0).peer, 0);
  EXPECT_EQ(all[1].phases.size(), 2u);
}

TEST(Repeated, refuses_no_rounds) {
  EXPECT_THROW(repeated_schedule(all_reduce_schedule(2), 0), InvalidArgument);
}

TEST(ExactAverage, is_taken_at_the_start_and_at_the_end_of_every_period) {
  const std::shared_ptr<const Schedule> gossip = crossover_schedule(5, 3);
  const auto schedule = exact_average_schedule(gossip, 4, 2);
  for (uint64_t round = 0; round < 12; ++round) {
    const bool exact = round < 2 || round % 4 == 3;
    EXPECT_EQ(schedule->num_phases({round, 0}), exact ? 2 : 1) << round;
    const Values before = numbers(5, 1);
    const Values mixed = after(programs(*schedule, {round, 0}, 1), before);
    const Values expected =
        exact ? Values(5, {mean(before, 0)}) : after(programs(*gossip, {round, 0}, 1), before);
    for (int rank = 0; rank < 5; ++rank) EXPECT_NEAR(mixed[rank][0], expected[rank][0], 1e-12);
  }
}

TEST(ExactAverage, without_a_period_is_taken_at_the_start_only) {
  const auto schedule = exact_average_schedule(crossover_schedule(5, 3), 0, 2);
  for (uint64_t round = 0; round < 9; ++round) {
    EXPECT_EQ(schedule->num_phases({round, 0}), round < 2 ? 2 : 1);
  }
}

}  // namespace
}  // namespace crossover
