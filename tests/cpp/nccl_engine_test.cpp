// Engines with their threads over the NCCL transport and the fake: the values are the reference's.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "core/engine.h"
#include "core/schedule.h"
#include "engine_world.h"
#include "host/system_poller.h"
#include "resident_device.h"

namespace crossover::testing {
namespace {

/// Averages with rank ^ 1, then with rank ^ 2: four ranks end at the mean.
std::vector<Replica> start_values(const SegmentPlan& plan, int size) {
  std::vector<Replica> replicas;
  for (int rank = 0; rank < size; ++rank) {
    Replica& replica = replicas.emplace_back(plan);
    for (auto& tensor : replica.tensors) {
      for (size_t i = 0; i < tensor.size(); ++i) {
        tensor[i] = static_cast<float>((i * 7 + static_cast<size_t>(rank) * 13) % 101) / 3.0F;
      }
    }
  }
  return replicas;
}

// Trains every rank of `world` on a thread of its own; what each rank was told, "" if all went
// well.
std::vector<std::string> train(NcclWorld& world, const SegmentPlan& plan,
                               const std::shared_ptr<const Schedule>& schedule, int num_rounds,
                               std::vector<Replica>& replicas) {
  const size_t size = world.ranks.size();
  std::vector<std::string> errors(size);
  const SteadyClock clock;
  std::vector<std::jthread> threads;
  for (size_t rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      const auto device = std::make_shared<ResidentDevice>();
      Engine engine({.rank = static_cast<int>(rank), .size = static_cast<int>(size)},
                    std::move(world.ranks[rank]), system_poller(), clock);
      engine.start();
      const std::vector<void*>& addresses = replicas[rank].addresses;
      try {
        const uint32_t id = engine.add_plan(plan, schedule, device, 0);
        for (int round = 0; round < num_rounds; ++round) {
          engine.open_round(id, addresses);
          while (engine.close_round(id, addresses, 1.0) == WaitStatus::kPending) {
          }
        }
      } catch (const CrossoverError& error) {
        errors[rank] = error.what();
      }
      engine.shutdown(10.0);
    });
  }
  threads.clear();
  return errors;
}

void expect_as_over_host_transports(const std::shared_ptr<const Schedule>& schedule, Dtype wire,
                                    const std::string& script) {
  constexpr int kRounds = 3;
  const int size = schedule->size();
  const SegmentPlan plan = small_plan(wire);
  std::vector<Replica> over_nccl = start_values(plan, size);
  std::vector<Replica> over_host = start_values(plan, size);
  NcclWorld nccl_world(size, script);
  for (const std::string& error : train(nccl_world, plan, schedule, kRounds, over_nccl)) {
    EXPECT_EQ(error, "");
  }
  EngineWorld host_world(Medium::kLocal, size);
  const uint32_t id = host_world.add_plan(plan, schedule);
  for (int round = 0; round < kRounds; ++round) host_world.round(id, over_host);
  for (int rank = 0; rank < size; ++rank) {
    EXPECT_TRUE(over_nccl[rank].tensors == over_host[rank].tensors)
        << schedule->name() << ", rank " << rank;
  }
}

TEST(NcclEngine, TrainsToTheSameBitsAsOverTheHostTransports) {
  expect_as_over_host_transports(crossover_schedule(5, 5), Dtype::kFloat32, "");
  for (const int size : {2, 3}) {
    for (const Dtype wire : {Dtype::kFloat32, Dtype::kBfloat16}) {
      expect_as_over_host_transports(crossover_schedule(size, 5), wire, "in_progress=2");
      expect_as_over_host_transports(ring_schedule(size), wire, "");
      expect_as_over_host_transports(complete_schedule(size), wire, "in_progress=1");
    }
  }
}

TEST(NcclEngine, ProgramsOfSeveralPhasesKeepTheirOrder) {
  expect_as_over_host_transports(repeated_schedule(exponential_xor_schedule(4), 3), Dtype::kFloat32,
                                 "in_progress=2");
  expect_as_over_host_transports(repeated_schedule(group_crossover_schedule(5, 3, 1), 2),
                                 Dtype::kFloat32, "in_progress=1");
  expect_as_over_host_transports(exact_average_schedule(crossover_schedule(4, 1), 2, 0),
                                 Dtype::kFloat32, "in_progress=2");
}

// Rank 1 takes half of rank 0's share and loses none of its own.
std::shared_ptr<const Schedule> shares_of_two() {
  return table_schedule({{{}, {{0, 0.5}}}}, Stochasticity::kColumn, false);
}

TEST(NcclEngine, CarriesTheWeightsOfPushSumWithItsNotices) {
  expect_as_over_host_transports(shares_of_two(), Dtype::kFloat32, "in_progress=1");
}

TEST(NcclEngine, RefusesPushSumWithoutTheNoticesThatCarryItsWeights) {
  NcclWorld world(2, "", [](NcclTransportConfig& config) { config.host_ready = false; });
  const SegmentPlan plan = small_plan();
  std::vector<Replica> replicas = start_values(plan, 2);
  for (const std::string& error : train(world, plan, shares_of_two(), 1, replicas)) {
    EXPECT_NE(error.find("'table' is column-stochastic (push-sum)"), std::string::npos) << error;
  }
}

TEST(NcclEngine, EveryRankLearnsTheFirstCauseAndTheEndIsBounded) {
  NcclWorld world(3, "failing_group=3;rank=1");
  const SegmentPlan plan = small_plan();
  std::vector<Replica> replicas = start_values(plan, 3);
  for (const std::string& error : train(world, plan, crossover_schedule(3, 5), 4, replicas)) {
    EXPECT_NE(error.find("rank 1: NCCL: after ncclGroupEnd of plan 0"), std::string::npos) << error;
  }
  fake_nccl().script("");
}

}  // namespace
}  // namespace crossover::testing
