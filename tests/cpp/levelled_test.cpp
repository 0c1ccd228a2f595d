// Levels of a schedule: what the chosen one draws, and what a round finds out about the distance.
#include "core/schedules/levelled.h"

#include <gtest/gtest.h>

#include "core/engine.h"
#include "core/error.h"
#include "dense_reference.h"
#include "engine_world.h"

namespace crossover::testing {
namespace {

std::vector<Level> pairs(int size) {
  const std::shared_ptr<const Schedule> one = crossover_schedule(size, 5);
  return {{one, Dtype::kFloat32},
          {repeated_schedule(one, 2), Dtype::kBfloat16},
          {repeated_schedule(one, 4), Dtype::kInt8Blocks}};
}

SegmentPlan plan_of(Dtype wire) {
  return SegmentPlan({make_segment("stem", {5, 0, 128}), make_segment("empty", {0}),
                      make_segment("body", {1000, 9000, 3})},
                     wire, {2, 1, 0});
}

TEST(Levelled, RoundsRunTheLevelThatWasChosenForThem) {
  const std::vector<Level> levels = pairs(4);
  LevelledSchedule schedule(levels);
  EXPECT_EQ(schedule.program({7, 0}, 10, 1).wire, Dtype::kFloat32);
  schedule.choose(2, 5);
  schedule.choose(1, 8);
  for (const uint64_t round : {7, 8, 9}) {
    const Level& level = levels[round < 8 ? 2 : 1];
    const Program program = schedule.program({round, 3}, 500, 1);
    const Program wanted = level.schedule->program({round, 3}, 500, 1);
    EXPECT_EQ(program.wire, level.wire);
    ASSERT_EQ(program.phases.size(), wanted.phases.size());
    EXPECT_EQ(program.phases[0].receives[0].peer, wanted.phases[0].receives[0].peer);
    EXPECT_EQ(schedule.num_phases({round, 3}), level.schedule->num_phases({round, 3}));
  }
}

TEST(Levelled, RefusesWhatIsNoSetOfLevelsOfOneJob) {
  const std::shared_ptr<const Schedule> of_three = ring_schedule(3);
  const std::shared_ptr<const Schedule> push_sum =
      table_schedule({{{{1, 0.25}}, {{0, 0.5}}}}, Stochasticity::kColumn, false);
  EXPECT_THROW(LevelledSchedule({}), InvalidArgument);
  EXPECT_THROW(LevelledSchedule({{of_three, Dtype::kFloat32}, pairs(4)[0]}), InvalidArgument);
  EXPECT_THROW(LevelledSchedule({{push_sum, Dtype::kFloat32}}), InvalidArgument);
  EXPECT_THROW(LevelledSchedule(pairs(2)).choose(3, 0), InvalidArgument);
}

/// What a rank finds: over every 32nd block of each message of the first round.
Difference expected_difference(const std::vector<Replica>& before, const Program& program, int rank,
                               const SegmentPlan& plan, uint32_t segment, Dtype wire) {
  const auto sent = [&](int peer) {
    std::vector<float> flat;
    for (size_t t = 0; t < plan.segment(segment).numels.size(); ++t) {
      const auto& tensor = before[peer].tensors[plan.first_tensor(segment) + t];
      flat.insert(flat.end(), tensor.begin(), tensor.end());
    }
    return quantized(wire, flat);
  };
  Difference found;
  if (program.phases.empty()) return found;
  const std::vector<float> own = sent(rank);
  for (const Receive& receive : program.phases[0].receives) {
    const std::vector<float> other = sent(receive.peer);
    for (size_t k = 0; k < own.size(); ++k) {
      if (k / kSliceUnitNumel % kMeasuredBlocks != 0) continue;
      const double apart = double{other[k]} - double{own[k]};
      found.squares += apart * apart;
      found.own_squares += double{own[k]} * double{own[k]};
    }
  }
  return found;
}

class LevelledEngines : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, LevelledEngines, ::testing::Values(2, 3, 4, 5));

TEST_P(LevelledEngines, MixAndMeasureEachRoundAsItsLevelSays) {
  const int size = GetParam();
  EngineWorld world(Medium::kLocal, size);
  const std::vector<Level> levels = pairs(size);
  const auto schedule = std::make_shared<LevelledSchedule>(levels);
  std::vector<Replica> replicas = random_replicas(plan_of(Dtype::kFloat32), size, 3);
  const uint32_t id = world.add_plan(plan_of(Dtype::kFloat32), schedule);
  uint32_t level = 0;
  for (uint64_t round = 0; round < 7; ++round) {
    const SegmentPlan plan = plan_of(levels[level].wire);
    const std::vector<Replica> before = copy(plan, replicas);
    std::vector<Replica> reference = copy(plan, replicas);
    reference_programs(plan, *levels[level].schedule, round, reference);
    const auto next = static_cast<uint32_t>((round * 2 + 1) % levels.size());
    schedule->choose(next, round + 1);
    world.round(id, replicas);
    expect_equal(replicas, reference);
    for (int rank = 0; rank < size; ++rank) {
      const std::vector<Difference> found = world.engines[rank]->differences(id);
      for (uint32_t s = 0; s < found.size(); ++s) {
        const Program program =
            levels[level].schedule->program({round, s}, plan.segment(s).numel(), rank);
        const Difference wanted =
            expected_difference(before, program, rank, plan, s, levels[level].wire);
        EXPECT_DOUBLE_EQ(found[s].squares, wanted.squares) << "round " << round;
        EXPECT_DOUBLE_EQ(found[s].own_squares, wanted.own_squares);
      }
    }
    level = next;
  }
}

TEST(LevelledEngine, TellsOfNoDifferencesWhileARoundIsOpen) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = plan_of(Dtype::kFloat32);
  std::vector<Replica> replicas = random_replicas(plan, 2, 3);
  const uint32_t id = world.add_plan(plan, std::make_shared<LevelledSchedule>(pairs(2)));
  world.engines[0]->open_round(id, replicas[0].addresses);
  EXPECT_THROW(world.engines[0]->differences(id), InvalidArgument);
}

TEST(LevelledEngine, FindsNothingUnderAnotherSchedule) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = plan_of(Dtype::kFloat32);
  std::vector<Replica> replicas = random_replicas(plan, 2, 3);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 5)));
  world.round(id, replicas);
  for (const Difference& found : world.engines[0]->differences(id)) {
    EXPECT_EQ(found.own_squares, 0.0);
  }
}

}  // namespace
}  // namespace crossover::testing
