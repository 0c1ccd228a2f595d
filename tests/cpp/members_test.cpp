// Schedules among some ranks of a job, and plans that only these ranks have.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "core/error.h"
#include "engine_world.h"

namespace crossover::testing {
namespace {

constexpr int kSize = 6;
const std::vector<int> kMembers{4, 0, 2};
const std::vector<int> kOthers{1, 5, 3};

std::vector<std::shared_ptr<const Schedule>> inner_schedules() {
  return {crossover_schedule(3, 7), ring_schedule(3), all_reduce_schedule(3),
          repeated_schedule(crossover_schedule(3, 7), 2)};
}

template <typename Transfer>
std::vector<Transfer> named(std::vector<Transfer> transfers) {
  for (Transfer& transfer : transfers) transfer.peer = kMembers[transfer.peer];
  return transfers;
}

bool same(const Slice& a, const Slice& b) { return a.begin == b.begin && a.end == b.end; }

TEST(AmongMembers, MembersRunTheInnerProgramWithEachOther) {
  for (const auto& inner : inner_schedules()) {
    const auto schedule = among_members_schedule(inner, kMembers, kSize);
    const RoundKey key{5, 1};
    for (int part = 0; part < 3; ++part) {
      const Program wanted = inner->program(key, 1000, part);
      const Program program = schedule->program(key, 1000, kMembers[part]);
      ASSERT_EQ(program.phases.size(), wanted.phases.size()) << inner->name();
      for (size_t p = 0; p < wanted.phases.size(); ++p) {
        const auto sends = named(wanted.phases[p].sends);
        const auto receives = named(wanted.phases[p].receives);
        ASSERT_EQ(program.phases[p].sends.size(), sends.size());
        ASSERT_EQ(program.phases[p].receives.size(), receives.size());
        for (size_t i = 0; i < receives.size(); ++i) {
          EXPECT_EQ(program.phases[p].receives[i].peer, receives[i].peer);
          EXPECT_EQ(program.phases[p].receives[i].weight, receives[i].weight);
          EXPECT_TRUE(same(program.phases[p].receives[i].slice, receives[i].slice));
        }
      }
    }
    for (const int rank : kOthers) {
      EXPECT_TRUE(schedule->program(key, 1000, rank).phases.empty()) << inner->name();
    }
  }
}

TEST(AmongMembers, RowsOfPeersStayStochastic) {
  const auto schedule = among_members_schedule(crossover_schedule(3, 7), kMembers, kSize);
  const auto* peers = dynamic_cast<const PeerSchedule*>(schedule.get());
  ASSERT_NE(peers, nullptr);
  for (uint64_t round = 0; round < 10; ++round) {
    const RoundKey key{round, 0};
    const std::vector<PeerRow> rows = peers->rows(key);
    check_rows(rows, Stochasticity::kDoubly, "rows");
    for (int rank = 0; rank < kSize; ++rank) {
      const Neighbours looked_up = peers->PeerSchedule::neighbours(key, rank);
      EXPECT_EQ(peers->neighbours(key, rank), looked_up) << "rank " << rank;
    }
  }
}

TEST(AmongMembers, MembersThatDoNotFitAreRefused) {
  const auto make = [](std::vector<int> members) {
    return among_members_schedule(ring_schedule(3), std::move(members), kSize);
  };
  EXPECT_THROW(make({0, 1}), InvalidArgument);
  EXPECT_THROW(make({0, 1, 1}), InvalidArgument);
  EXPECT_THROW(make({0, 1, 6}), InvalidArgument);
  EXPECT_THROW(make({0, -1, 2}), InvalidArgument);
}

std::vector<Replica> random_replicas(const SegmentPlan& plan) {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  std::vector<Replica> replicas;
  for (int rank = 0; rank < kSize; ++rank) {
    for (auto& tensor : replicas.emplace_back(plan).tensors) {
      for (float& value : tensor) value = normal(generator);
    }
  }
  return replicas;
}

/// The tensors of `members` after rounds in a job of their own.
std::vector<Replica> in_a_job_of_their_own(const std::vector<int>& members,
                                           const std::shared_ptr<const Schedule>& inner,
                                           int num_rounds) {
  const SegmentPlan plan = small_plan();
  const std::vector<Replica> all = random_replicas(plan);
  EngineWorld world(Medium::kLocal, static_cast<int>(members.size()));
  std::vector<Replica> replicas;
  for (const int rank : members) {
    Replica& replica = replicas.emplace_back(plan);
    for (size_t t = 0; t < replica.tensors.size(); ++t) {
      std::ranges::copy(all[rank].tensors[t], replica.tensors[t].begin());
    }
  }
  const uint32_t id = world.add_plan(plan, inner);
  for (int round = 0; round < num_rounds; ++round) world.round(id, replicas);
  return replicas;
}

TEST(AmongMembers, DisjointGroupsExchangeUnderIdsOfTheirOwn) {
  const SegmentPlan plan = small_plan();
  for (const auto& inner : inner_schedules()) {
    EngineWorld world(Medium::kLocal, kSize);
    std::vector<Replica> replicas = random_replicas(plan);
    std::vector<uint32_t> ids(kSize);
    uint32_t chosen = kFirstChosenPlan;
    for (const auto& members : {kMembers, kOthers}) {
      const std::shared_ptr<const Schedule> schedule =
          among_members_schedule(inner, members, kSize);
      for (const int rank : members) {
        ids[rank] = world.engines[rank]->add_plan(plan, schedule, host_device(), 0, {}, chosen);
      }
      chosen += 7;
    }
    for (int round = 0; round < 3; ++round) {
      for (int rank = 0; rank < kSize; ++rank) {
        world.engines[rank]->open_round(ids[rank], replicas[rank].addresses);
      }
      bool all = false;
      for (int turns = 0; !all && turns < 200000; ++turns) {
        world.turn();
        all = true;
        for (int rank = 0; rank < kSize; ++rank) {
          all &= world.engines[rank]->close_round(ids[rank], replicas[rank].addresses, 0.0) ==
                 WaitStatus::kMixed;
        }
      }
      ASSERT_TRUE(all) << inner->name();
    }
    for (const auto& members : {kMembers, kOthers}) {
      const std::vector<Replica> wanted = in_a_job_of_their_own(members, inner, 3);
      for (size_t i = 0; i < members.size(); ++i) {
        EXPECT_EQ(replicas[members[i]].tensors, wanted[i].tensors) << inner->name();
      }
    }
  }
}

TEST(AmongMembers, AnIdThatEveryRankCountsOrThatIsTakenIsRefused) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = small_plan();
  const std::shared_ptr<const Schedule> schedule = ring_schedule(2);
  Engine& engine = *world.engines[0];
  const auto add = [&](uint32_t id) {
    return engine.add_plan(plan, schedule, host_device(), 0, {}, id);
  };
  EXPECT_THROW(add(0), InvalidArgument);
  EXPECT_EQ(add(kFirstChosenPlan), kFirstChosenPlan);
  EXPECT_THROW(add(kFirstChosenPlan), InvalidArgument);
  engine.remove_plan(kFirstChosenPlan);
  EXPECT_THROW(add(kFirstChosenPlan), InvalidArgument);
  EXPECT_EQ(engine.add_plan(plan, schedule, host_device(), 0), 0u);
}

}  // namespace
}  // namespace crossover::testing
