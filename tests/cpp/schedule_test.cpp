#include "core/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <thread>

#include "core/error.h"

namespace crossover {
namespace {

using Map = std::vector<int>;
using Table = std::vector<PeerRow>;

Map sources(const PeerSchedule& schedule, const RoundKey& key) {
  Map map;
  for (const PeerRow& row : schedule.rows(key)) map.push_back(row.at(0).peer);
  return map;
}

bool is_derangement(const Map& map) {
  for (int rank = 0; rank < static_cast<int>(map.size()); ++rank) {
    if (map[rank] == rank || std::ranges::count(map, rank) != 1) return false;
  }
  return true;
}

struct Named {
  std::string label;
  std::unique_ptr<PeerSchedule> schedule;
};

/// A table for any size: two steps to the left in round 0 (one for two ranks), one in round 1.
std::unique_ptr<PeerSchedule> shifting_table(int size) {
  std::vector<Table> tables(2, Table(size));
  for (int rank = 0; rank < size && size > 1; ++rank) {
    tables[0][rank] = {{(rank + (size > 2 ? 2 : 1)) % size, 0.25}};
    tables[1][rank] = {{(rank + 1) % size, 0.5}};
  }
  return table_schedule(std::move(tables), Stochasticity::kDoubly, true);
}

std::vector<Named> every_schedule(int size) {
  std::vector<Named> all;
  all.push_back({"crossover", crossover_schedule(size, 3)});
  all.push_back({"crossover-sequential", crossover_sequential_schedule(size, 3, 5)});
  all.push_back({"noseg", crossover_schedule(size, 3, false)});
  all.push_back({"nofairness", crossover_schedule(size, 3, true, false)});
  all.push_back({"nofaseg", crossover_schedule(size, 3, false, false)});
  all.push_back({"shift", shift_schedule(size, 3)});
  all.push_back({"exponential", exponential_schedule(size)});
  all.push_back({"exponential-xor", exponential_xor_schedule(size)});
  all.push_back({"base2", base2_schedule(size)});
  all.push_back({"ring", ring_schedule(size)});
  all.push_back({"complete", complete_schedule(size)});
  all.push_back({"table", shifting_table(size)});
  return all;
}

template <typename Call>
std::string invalid_argument(const Call& call) {
  try {
    call();
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(EverySchedule, has_rows_with_its_declared_property_at_every_size) {
  for (int size = 1; size <= 64; ++size) {
    for (const auto& [label, schedule] : every_schedule(size)) {
      const bool fair = label != "nofairness" && label != "nofaseg";
      EXPECT_EQ(schedule->size(), size);
      EXPECT_EQ(schedule->num_phases({0, 0}), 1);
      EXPECT_EQ(schedule->stochasticity(), fair ? Stochasticity::kDoubly : Stochasticity::kRow);
      for (uint64_t round = 0; round < 8; ++round) {
        const Table rows = schedule->rows({round, 1});
        ASSERT_EQ(rows.size(), static_cast<size_t>(size));
        ASSERT_NO_THROW(check_rows(rows, schedule->stochasticity(), label));
      }
    }
  }
}

TEST(EverySchedule, shows_each_rank_the_same_neighbours_as_its_rows) {
  for (int size : {1, 2, 3, 8, 13}) {
    for (const auto& [name, schedule] : every_schedule(size)) {
      for (int rank = 0; rank < size; ++rank) {
        const RoundKey key{5, 2};
        EXPECT_EQ(schedule->neighbours(key, rank), schedule->PeerSchedule::neighbours(key, rank))
            << name << ", size " << size << ", rank " << rank;
      }
    }
  }
}

TEST(EverySchedule, matches_every_send_with_one_receive_of_the_whole_segment) {
  for (const auto& [name, schedule] : every_schedule(7)) {
    std::multiset<std::pair<int, int>> sent, received;
    for (int rank = 0; rank < 7; ++rank) {
      const Program program = schedule->program({4, 1}, 10, rank);
      if (program.phases.empty()) continue;
      ASSERT_EQ(program.phases.size(), 1u) << name;
      for (const Send& send : program.phases[0].sends) {
        sent.emplace(rank, send.peer);
        EXPECT_EQ(send.slice, (Slice{0, 10}));
      }
      for (const Receive& receive : program.phases[0].receives) {
        received.emplace(receive.peer, rank);
        EXPECT_EQ(receive.slice, (Slice{0, 10}));
      }
    }
    EXPECT_EQ(sent, received) << name;
  }
}

TEST(EverySchedule, is_idle_for_a_single_rank) {
  for (const auto& [name, schedule] : every_schedule(1)) {
    EXPECT_EQ(schedule->rows({0, 0}), Table(1)) << name;
    EXPECT_TRUE(schedule->program({0, 0}, 10, 0).phases.empty()) << name;
  }
}

TEST(EverySchedule, is_idle_for_an_empty_segment) {
  for (const auto& [name, schedule] : every_schedule(4)) {
    EXPECT_TRUE(schedule->program({0, 0}, 0, 1).phases.empty()) << name;
  }
}

TEST(EverySchedule, draws_a_round_alone_as_in_sequence) {
  for (auto& [name, in_sequence] : every_schedule(9)) {
    std::vector<Table> rounds;
    for (uint64_t round = 0; round < 40; ++round) rounds.push_back(in_sequence->rows({round, 3}));
    for (auto& [other_name, alone] : every_schedule(9)) {
      if (other_name != name) continue;
      for (uint64_t round : {31, 7, 7, 8, 0, 39}) {
        EXPECT_EQ(alone->rows({round, 3}), rounds[round]) << name << ", round " << round;
      }
    }
  }
}

TEST(EverySchedule, refuses_a_rank_outside_the_job) {
  for (const auto& [name, schedule] : every_schedule(4)) {
    for (int rank : {-1, 4}) {
      EXPECT_EQ(
          invalid_argument([&] { schedule->program({0, 0}, 1, rank); }),
          std::string(schedule->name()) + ": rank: expected 0..3, got " + std::to_string(rank));
    }
  }
}

TEST(EverySchedule, refuses_a_size_below_one) {
  const std::string message = ": size: expected at least 1, got 0";
  EXPECT_EQ(invalid_argument([] { crossover_schedule(0, 1); }), "crossover" + message);
  EXPECT_EQ(invalid_argument([] { crossover_sequential_schedule(0, 1, 1); }),
            "crossover-sequential" + message);
  EXPECT_EQ(invalid_argument([] { shift_schedule(0, 1); }), "shift" + message);
  EXPECT_EQ(invalid_argument([] { exponential_schedule(0); }), "exponential" + message);
  EXPECT_EQ(invalid_argument([] { exponential_xor_schedule(0); }), "exponential-xor" + message);
  EXPECT_EQ(invalid_argument([] { base2_schedule(0); }), "base2" + message);
  EXPECT_EQ(invalid_argument([] { ring_schedule(0); }), "ring" + message);
  EXPECT_EQ(invalid_argument([] { complete_schedule(0); }), "complete" + message);
}

TEST(Crossover, is_a_derangement_with_weight_one_half_at_every_size) {
  for (int size = 2; size <= 64; ++size) {
    const auto schedule = crossover_schedule(size, 17);
    for (uint64_t round = 0; round < 20; ++round) {
      ASSERT_TRUE(is_derangement(sources(*schedule, {round, 0}))) << "size " << size;
      for (const PeerRow& row : schedule->rows({round, 0})) ASSERT_EQ(row.at(0).weight, 0.5);
    }
  }
}

TEST(Crossover, draws_ten_thousand_ranks) {
  EXPECT_TRUE(is_derangement(sources(*crossover_schedule(10000, 1), {0, 0})));
}

TEST(CrossoverSequential, repeats_the_authors_first_update_of_eight_workers) {
  const std::vector<Map> golden{
      {7, 2, 5, 0, 1, 4, 3, 6}, {3, 5, 4, 6, 2, 1, 7, 0}, {7, 5, 3, 6, 2, 0, 4, 1},
      {6, 5, 3, 0, 7, 2, 1, 4}, {7, 2, 5, 4, 3, 6, 0, 1}, {3, 6, 5, 2, 7, 1, 0, 4},
      {1, 3, 6, 5, 0, 2, 7, 4}, {3, 6, 0, 2, 7, 4, 5, 1}, {6, 2, 4, 1, 3, 7, 5, 0},
      {1, 5, 0, 2, 7, 4, 3, 6}, {2, 5, 1, 0, 7, 3, 4, 6}, {5, 7, 4, 2, 0, 6, 1, 3},
      {1, 3, 7, 4, 5, 2, 0, 6}, {1, 4, 3, 6, 0, 7, 5, 2}, {4, 6, 7, 5, 3, 1, 0, 2},
      {1, 4, 5, 0, 2, 6, 7, 3}, {3, 0, 6, 1, 2, 4, 7, 5}, {2, 0, 6, 4, 1, 7, 3, 5}};
  const auto schedule = crossover_sequential_schedule(8, 6, 18);
  for (uint32_t segment = 0; segment < golden.size(); ++segment) {
    EXPECT_EQ(sources(*schedule, {0, segment}), golden[segment]) << "segment " << segment;
  }
}

TEST(CrossoverSequential, repeats_the_authors_first_maps_of_four_workers) {
  const std::vector<Map> golden{{3, 0, 1, 2}, {1, 2, 3, 0}, {2, 0, 3, 1},
                                {2, 3, 1, 0}, {2, 3, 1, 0}, {3, 2, 0, 1}};
  const auto at_once = crossover_sequential_schedule(4, 6, 6);
  const auto two_a_round = crossover_sequential_schedule(4, 6, 2);
  for (uint32_t i = 0; i < golden.size(); ++i) {
    EXPECT_EQ(sources(*at_once, {0, i}), golden[i]);
    EXPECT_EQ(sources(*two_a_round, {i / 2, i % 2}), golden[i]);
  }
}

TEST(CrossoverSequential, repeats_the_authors_first_map_of_sixteen_workers) {
  const Map golden{14, 5, 12, 0, 2, 9, 8, 6, 4, 11, 7, 13, 10, 3, 15, 1};
  EXPECT_EQ(sources(*crossover_sequential_schedule(16, 6, 18), {0, 0}), golden);
}

TEST(CrossoverSequential, is_a_derangement_at_every_size) {
  for (int size = 2; size <= 64; ++size) {
    const auto schedule = crossover_sequential_schedule(size, 6, 4);
    for (uint64_t round = 0; round < 10; ++round) {
      ASSERT_TRUE(is_derangement(sources(*schedule, {round, 3}))) << "size " << size;
    }
  }
}

TEST(CrossoverSequential, gives_two_threads_the_same_maps_whatever_their_order) {
  const auto reference = crossover_sequential_schedule(8, 6, 3);
  const auto shared = crossover_sequential_schedule(8, 6, 3);
  std::vector<Map> expected, upwards, downwards;
  for (uint64_t round = 0; round < 50; ++round) {
    expected.push_back(sources(*reference, {round, 2}));
  }
  std::jthread up([&] {
    for (uint64_t round = 0; round < 50; ++round) upwards.push_back(sources(*shared, {round, 2}));
  });
  std::jthread down([&] {
    for (int round = 49; round >= 0; --round) {
      downwards.push_back(sources(*shared, {static_cast<uint64_t>(round), 2}));
    }
  });
  up.join();
  down.join();
  std::ranges::reverse(downwards);
  EXPECT_EQ(upwards, expected);
  EXPECT_EQ(downwards, expected);
}

TEST(CrossoverSequential, refuses_what_its_number_of_segments_does_not_hold) {
  EXPECT_EQ(invalid_argument([] { crossover_sequential_schedule(4, 6, 0); }),
            "crossover-sequential: num_segments: expected at least 1, got 0");
  const auto schedule = crossover_sequential_schedule(4, 6, 3);
  EXPECT_EQ(invalid_argument([&] { schedule->rows({0, 3}); }),
            "crossover-sequential: segment 3: made for 3 segments");
}

TEST(Exponential, sends_two_to_the_phase_ahead) {
  for (int size : {2, 3, 4, 5, 8, 12, 33}) {
    int num_phases = 0;
    while ((1 << num_phases) < size) ++num_phases;
    const auto schedule = exponential_schedule(size);
    for (uint64_t round = 0; round < 9; ++round) {
      const uint32_t segment = 4;
      const int hop = 1 << ((round + segment) % num_phases);
      for (int rank = 0; rank < size; ++rank) {
        const Neighbours expected{{{(rank - hop + size) % size, 0.5}}, {(rank + hop) % size}};
        EXPECT_EQ(schedule->neighbours({round, segment}, rank), expected);
      }
    }
  }
}

TEST(Ring, hears_both_sides_with_a_third_each) {
  const double third = 1.0 / 3.0;
  const Table rows = ring_schedule(4)->rows({2, 1});
  EXPECT_EQ(rows[0], (PeerRow{{1, third}, {3, third}}));
  EXPECT_EQ(rows[2], (PeerRow{{1, third}, {3, third}}));
}

TEST(Ring, of_two_is_the_plain_average) {
  EXPECT_EQ(ring_schedule(2)->rows({0, 0}), (Table{{{1, 0.5}}, {{0, 0.5}}}));
}

TEST(Complete, hears_everyone_in_ascending_order) {
  EXPECT_EQ(complete_schedule(3)->rows({1, 1})[1], (PeerRow{{0, 1.0 / 3.0}, {2, 1.0 / 3.0}}));
}

TEST(TableSchedule, cycles_through_its_tables_by_round) {
  const Table first{{{1, 0.25}}, {{0, 0.25}}}, second{{{1, 0.5}}, {{0, 0.5}}};
  const auto schedule = table_schedule({first, second}, Stochasticity::kDoubly, false);
  EXPECT_EQ(schedule->rows({4, 1}), first);
  EXPECT_EQ(schedule->rows({5, 1}), second);
}

TEST(TableSchedule, rotates_by_segment_when_asked) {
  const Table first{{{1, 0.25}}, {{0, 0.25}}}, second{{{1, 0.5}}, {{0, 0.5}}};
  const auto schedule = table_schedule({first, second}, Stochasticity::kDoubly, true);
  EXPECT_EQ(schedule->rows({4, 1}), second);
  EXPECT_EQ(schedule->rows({5, 1}), first);
}

TEST(TableSchedule, keeps_the_order_of_its_rows_for_mixing) {
  const Table rows{{{2, 0.25}, {1, 0.5}}, {{0, 0.5}}, {{0, 0.25}}};
  const auto schedule = table_schedule({rows}, Stochasticity::kDoubly, false);
  const Phase phase = schedule->program({0, 0}, 6, 0).phases.at(0);
  EXPECT_EQ(phase.receives.at(0).peer, 2);
  EXPECT_EQ(phase.receives.at(0).weight, 0.25);
  EXPECT_EQ(phase.receives.at(1).peer, 1);
}

TEST(TableSchedule, takes_a_row_stochastic_star_only_as_such) {
  const Table star{{}, {{0, 0.5}}, {{0, 0.5}}};
  const auto schedule = table_schedule({star}, Stochasticity::kRow, false);
  EXPECT_EQ(schedule->stochasticity(), Stochasticity::kRow);
  EXPECT_EQ(schedule->neighbours({0, 0}, 0), (Neighbours{{}, {1, 2}}));
  EXPECT_EQ(invalid_argument([&] { table_schedule({star}, Stochasticity::kDoubly, false); }),
            "table 0, column 0: expected a sum of 1 with the diagonal, got 2");
  EXPECT_EQ(invalid_argument([&] { table_schedule({star}, Stochasticity::kColumn, false); }),
            "table 0, column 0: expected shares whose sum leaves the rank a part, below 1, got 1");
}

TEST(TableSchedule, lets_the_column_say_what_a_rank_keeps_in_push_sum) {
  const Table shares{{}, {{0, 0.25}}, {{0, 0.5}, {1, 0.75}}};
  const auto schedule = table_schedule({shares}, Stochasticity::kColumn, false);
  for (int rank = 0; rank < 3; ++rank) {
    const double keep = rank == 2 ? 1.0 : 0.25;
    EXPECT_EQ(schedule->neighbours({0, 0}, rank).keep, keep);
    EXPECT_EQ(schedule->PeerSchedule::neighbours({0, 0}, rank), schedule->neighbours({0, 0}, rank));
    EXPECT_EQ(schedule->program({0, 0}, 5, rank).phases.at(0).keep, keep);
  }
  const std::string row_sum = "table 0, row 2: expected weights that sum to at most 1, got 1.25";
  EXPECT_EQ(invalid_argument([&] { table_schedule({shares}, Stochasticity::kRow, false); }),
            row_sum);
}

TEST(TableSchedule, names_the_defect_of_a_table) {
  const double infinity = std::numeric_limits<double>::infinity();
  const auto message = [](const PeerRow& row) {
    const Table good{{{1, 0.5}}, {{0, 0.5}}, {}};
    return invalid_argument(
        [&] { table_schedule({good, {{{1, 0.5}}, row, {}}}, Stochasticity::kRow, false); });
  };
  const std::string where = "table 1, row 1";
  EXPECT_EQ(message({{3, 0.5}}), where + ": peer 3: expected a rank in 0..2");
  EXPECT_EQ(message({{-1, 0.5}}), where + ": peer -1: expected a rank in 0..2");
  EXPECT_EQ(message({{1, 0.5}}),
            where + ": peer 1: is the row's own rank, whose weight is what the others leave");
  EXPECT_EQ(message({{0, 0.2}, {0, 0.2}}), where + ": peer 0: is named twice");
  EXPECT_EQ(message({{0, 0.0}}), where + ": peer 0: expected a finite weight > 0, got 0");
  EXPECT_EQ(message({{0, -0.5}}), where + ": peer 0: expected a finite weight > 0, got -0.5");
  EXPECT_EQ(message({{0, infinity}}), where + ": peer 0: expected a finite weight > 0, got inf");
  EXPECT_EQ(message({{0, 0.75}, {2, 0.5}}),
            where + ": expected weights that sum to at most 1, got 1.25");
}

TEST(TableSchedule, names_a_table_of_another_size) {
  const Table two{{{1, 0.5}}, {{0, 0.5}}};
  EXPECT_EQ(
      invalid_argument([&] { table_schedule({two, Table(3)}, Stochasticity::kDoubly, false); }),
      "table 1: expected 2 rows as in table 0, got 3");
}

TEST(TableSchedule, refuses_to_be_empty) {
  EXPECT_EQ(invalid_argument([] { table_schedule({}, Stochasticity::kDoubly, false); }),
            "tables: expected at least one, got none");
  EXPECT_EQ(invalid_argument([] { table_schedule({Table{}}, Stochasticity::kDoubly, false); }),
            "table 0: expected at least one row, got none");
}

}  // namespace
}  // namespace crossover
