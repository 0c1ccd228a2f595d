// Exact averages inside groups of ranks, and gossip among groups.
#include "core/groups.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "engine_world.h"

namespace crossover::testing {
namespace {

const Groups kSixInThree{{0, 3}, {4, 1}, {2, 5}};
const Groups kUnlike{{5, 0, 2}, {1}, {3, 4}};

std::vector<Replica> random_replicas(const SegmentPlan& plan, int size, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<Replica> replicas;
  for (int rank = 0; rank < size; ++rank) {
    for (auto& tensor : replicas.emplace_back(plan).tensors) {
      for (float& value : tensor) value = normal(generator) + static_cast<float>(rank);
    }
  }
  return replicas;
}

void copy_tensors(const Replica& from, Replica& to) {
  for (size_t t = 0; t < from.tensors.size(); ++t) {
    std::ranges::copy(from.tensors[t], to.tensors[t].begin());
  }
}

/// Members get the tensors of their group's first.
void equalize(const Groups& groups, std::vector<Replica>& replicas) {
  for (const auto& members : groups) {
    for (const int rank : members) copy_tensors(replicas[members[0]], replicas[rank]);
  }
}

void expect_members_equal(const Groups& groups, const std::vector<Replica>& replicas) {
  for (const auto& members : groups) {
    for (const int rank : members) {
      for (size_t t = 0; t < replicas[rank].tensors.size(); ++t) {
        ASSERT_EQ(replicas[rank].tensors[t], replicas[members[0]].tensors[t])
            << "rank " << rank << ", tensor " << t;
      }
    }
  }
}

/// Each segment in as many equal slices, laid out backwards from member to member.
ShardCuts even_cuts(const SegmentPlan& plan, int num_shards) {
  ShardCuts cuts;
  for (const Segment& segment : plan.segments()) {
    std::vector<Slice>& slices = cuts.emplace_back();
    for (int shard = num_shards; shard-- > 0;) {
      slices.push_back(
          {segment.numel() * shard / num_shards, segment.numel() * (shard + 1) / num_shards});
    }
  }
  return cuts;
}

class GroupsOverMedia : public ::testing::TestWithParam<Medium> {};

INSTANTIATE_TEST_SUITE_P(Media, GroupsOverMedia,
                         ::testing::Values(Medium::kLocal, Medium::kLocalWithFaults,
                                           Medium::kShared, Medium::kSocket),
                         [](const auto& info) { return medium_name(info.param); });

TEST_P(GroupsOverMedia, AveragesAreEqualBitForBitAndExactInEveryRound) {
  EngineWorld world(GetParam(), 6);
  for (const Dtype wire : {Dtype::kFloat32, Dtype::kBfloat16}) {
    const SegmentPlan plan = small_plan(wire);
    const float tolerance = wire == Dtype::kFloat32 ? 2e-6f : 0.05f;
    for (const GroupRoute route : {GroupRoute::kSharded, GroupRoute::kRoot}) {
      const uint32_t id = world.add_plan(plan, group_average_schedule(kUnlike, route));
      for (uint32_t round = 0; round < 5; ++round) {
        std::vector<Replica> replicas = random_replicas(plan, 6, round);
        const float before = replicas[1].tensors[4][7];
        const float mean = (replicas[3].tensors[4][7] + replicas[4].tensors[4][7]) / 2;
        world.round(id, replicas);
        expect_members_equal(kUnlike, replicas);
        EXPECT_EQ(replicas[1].tensors[4][7], before);
        EXPECT_NEAR(replicas[3].tensors[4][7], mean, tolerance);
      }
      for (auto& engine : world.engines) engine->remove_plan(id);
    }
  }
}

TEST_P(GroupsOverMedia, GossipAmongGroupsEqualsGossipAmongAsManyRanks) {
  EngineWorld flat(Medium::kLocal, 3);
  EngineWorld world(GetParam(), 6);
  const std::shared_ptr<const Schedule> inner = crossover_schedule(3, 9);
  for (const Groups& groups : {kSixInThree, kUnlike}) {
    for (const int num_shards : groups == kUnlike ? std::vector{1} : std::vector{1, 2}) {
      const SegmentPlan plan = small_plan();
      const uint32_t flat_id = flat.add_plan(plan, inner);
      const uint32_t id =
          world.add_plan(plan, hierarchical_schedule(inner, groups, even_cuts(plan, num_shards)));
      std::vector<Replica> reference = random_replicas(plan, 3, 1);
      std::vector<Replica> replicas = random_replicas(plan, 6, 1);
      for (size_t group = 0; group < 3; ++group) {
        copy_tensors(reference[group], replicas[groups[group][0]]);
      }
      equalize(groups, replicas);
      for (int round = 0; round < 8; ++round) {
        flat.round(flat_id, reference);
        world.round(id, replicas);
        expect_members_equal(groups, replicas);
      }
      for (size_t group = 0; group < 3; ++group) {
        for (size_t t = 0; t < reference[group].tensors.size(); ++t) {
          for (size_t k = 0; k < reference[group].tensors[t].size(); ++k) {
            ASSERT_NEAR(replicas[groups[group][0]].tensors[t][k], reference[group].tensors[t][k],
                        1e-5f);
          }
        }
      }
      for (auto& engine : flat.engines) engine->remove_plan(flat_id);
      for (auto& engine : world.engines) engine->remove_plan(id);
    }
  }
}

TEST(Groups, MembersStayEqualOverManyRoundsOfGossipInBfloat16) {
  const Groups groups{{0, 1}, {2, 3}};
  const SegmentPlan plan = small_plan(Dtype::kBfloat16);
  EngineWorld world(Medium::kLocal, 4);
  const uint32_t id = world.add_plan(
      plan, hierarchical_schedule(crossover_schedule(2, 1), groups, even_cuts(plan, 2)));
  std::vector<Replica> replicas = random_replicas(plan, 4, 2);
  equalize(groups, replicas);
  const float sum = replicas[0].tensors[4][0] + replicas[2].tensors[4][0];
  for (int round = 0; round < 100; ++round) {
    world.round(id, replicas);
    expect_members_equal(groups, replicas);
  }
  EXPECT_NEAR(replicas[0].tensors[4][0] + replicas[2].tensors[4][0], sum, 1e-5f);
}

TEST(Groups, ABroadcastCopiesTheRootsTensorsBitForBit) {
  const SegmentPlan plan = small_plan();
  EngineWorld world(Medium::kLocal, 6);
  const uint32_t id = world.add_plan(plan, group_broadcast_schedule(kUnlike));
  std::vector<Replica> replicas = random_replicas(plan, 6, 2);
  const std::vector<float> roots = replicas[5].tensors[4];
  world.round(id, replicas);
  expect_members_equal(kUnlike, replicas);
  EXPECT_EQ(replicas[2].tensors[4], roots);
}

TEST(Groups, AnInfinityReachesEveryMemberOfAPlanThatLetsItTravel) {
  const SegmentPlan plan = small_plan();
  EngineWorld world(Medium::kLocal, 2);
  uint32_t id = 0;
  const std::shared_ptr<const Schedule> schedule =
      group_average_schedule({{0, 1}}, GroupRoute::kSharded);
  for (auto& engine : world.engines) {
    id = engine->add_plan(plan, schedule, host_device(), 0, NonFinitePolicy::kIgnore);
  }
  std::vector<Replica> replicas = random_replicas(plan, 2, 2);
  replicas[1].tensors[4][3] = std::numeric_limits<float>::infinity();
  world.round(id, replicas);
  for (const Replica& replica : replicas) EXPECT_FALSE(std::isfinite(replica.tensors[4][3]));
}

TEST(Groups, SegmentsPostedOneByOneInAnyOrderAreExchanged) {
  const SegmentPlan plan = small_plan();
  EngineWorld world(Medium::kLocal, 2);
  const uint32_t id = world.add_plan(plan, group_average_schedule({{0, 1}}, GroupRoute::kSharded));
  std::vector<Replica> replicas = random_replicas(plan, 2, 2);
  for (int rank = 0; rank < 2; ++rank) {
    for (const uint32_t segment :
         rank == 0 ? std::vector{0u, 2u, 3u, 1u} : std::vector{3u, 1u, 2u, 0u}) {
      world.engines[rank]->open_segment(
          id, segment,
          std::span(replicas[rank].addresses)
              .subspan(plan.first_tensor(segment), plan.segment(segment).numels.size()));
    }
    EXPECT_THROW(
        world.engines[rank]->open_segment(id, 2, std::span(replicas[rank].addresses).subspan(4, 2)),
        InvalidArgument);
    EXPECT_THROW(world.engines[rank]->open_segment(id, 9, {}), InvalidArgument);
  }
  world.close(id, replicas);
  expect_members_equal({{0, 1}}, replicas);
}

TEST(Groups, MembersSendWhatIsDocumented) {
  const auto sent = [](const Schedule& schedule, uint32_t segment, int64_t numel, int rank) {
    int64_t total = 0;
    for (const Phase& phase : schedule.program({0, segment}, numel, rank).phases) {
      for (const Send& send : phase.sends) total += send.slice.numel();
    }
    return total;
  };
  const Groups one{{0, 1, 2, 3}};
  const auto sharded = group_average_schedule(one, GroupRoute::kSharded);
  const auto root = group_average_schedule(one, GroupRoute::kRoot);
  for (int rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(sent(*sharded, 0, 4096, rank), 2 * 3 * 4096 / 4);
    EXPECT_EQ(sent(*root, 0, 4096, rank), rank == 0 ? 3 * 4096 : 4096);
    EXPECT_EQ(sent(*sharded, 1, 3, rank), rank == 0 ? 3 * 3 : 3);  // too small for two owners
  }
}

TEST(Groups, WhatAreNoGroupsIsRefused) {
  for (const Groups& groups : {Groups{}, Groups{{0}, {}}, Groups{{0, 2}}, Groups{{0, 1}, {1}}}) {
    EXPECT_THROW(group_broadcast_schedule(groups), InvalidArgument);
  }
  const auto schedule = group_broadcast_schedule({{0, 1}});
  EXPECT_THROW(schedule->program({}, 1, 2), InvalidArgument);
}

TEST(Groups, CutsThatAreNotTheSegmentAreRefused) {
  const std::shared_ptr<const Schedule> inner = ring_schedule(2);
  const Groups groups{{0, 1}, {2, 3}};
  const auto make = [&](const ShardCuts& cuts) {
    return hierarchical_schedule(inner, groups, cuts);
  };
  EXPECT_THROW(make({{}}), InvalidArgument);
  EXPECT_THROW(make({{{0, 1}, {1, 2}, {2, 3}}}), InvalidArgument);
  EXPECT_THROW(make({{{0, 2}, {3, 4}}}), InvalidArgument);
  EXPECT_THROW(hierarchical_schedule(inner, {{0, 1}}, {}), InvalidArgument);
  const auto schedule = make({{{2, 5}, {0, 2}}});
  EXPECT_THROW(schedule->program({0, 0}, 6, 0), InvalidArgument);
  EXPECT_THROW(schedule->program({0, 1}, 5, 0), InvalidArgument);
}

}  // namespace
}  // namespace crossover::testing
