// Rounds of the engine against the dense reference, over every medium.
#include "core/engine.h"

#include <gtest/gtest.h>

#include <thread>

#include "dense_reference.h"
#include "engine_world.h"
#include "host/system_poller.h"

namespace crossover::testing {
namespace {

std::vector<std::shared_ptr<PeerSchedule>> all_schedules(int size, uint32_t num_segments) {
  std::vector<std::shared_ptr<PeerSchedule>> schedules;
  schedules.push_back(crossover_schedule(size, 5));
  schedules.push_back(crossover_sequential_schedule(size, 6, num_segments));
  schedules.push_back(exponential_schedule(size));
  schedules.push_back(ring_schedule(size));
  schedules.push_back(complete_schedule(size));
  return schedules;
}

class EngineOverMedia : public ::testing::TestWithParam<std::tuple<Medium, int>> {};

INSTANTIATE_TEST_SUITE_P(Media, EngineOverMedia,
                         ::testing::Combine(::testing::Values(Medium::kLocal,
                                                              Medium::kLocalWithFaults,
                                                              Medium::kShared, Medium::kSocket),
                                            ::testing::Values(2, 3, 4, 5, 8)),
                         [](const auto& info) {
                           return medium_name(std::get<0>(info.param)) +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(EngineOverMedia, EveryScheduleAndWireEqualsTheDenseReferenceBitForBit) {
  const auto [medium, size] = GetParam();
  EngineWorld world(medium, size);
  for (const Dtype wire : {Dtype::kFloat32, Dtype::kBfloat16}) {
    const SegmentPlan plan = small_plan(wire);
    for (const auto& schedule : all_schedules(size, 4)) {
      std::vector<Replica> replicas = random_replicas(plan, size, 3);
      std::vector<Replica> reference = copy(plan, replicas);
      const uint32_t id = world.add_plan(plan, schedule, 10);
      for (uint64_t round = 10; round < 13; ++round) {
        world.round(id, replicas);
        reference_round(plan, *schedule, round, reference);
        expect_equal(replicas, reference);
      }
      for (auto& engine : world.engines) engine->remove_plan(id);
    }
  }
}

TEST(Engine, MeanOfSmallIntegersIsKeptExactly) {
  constexpr int kSize = 4;
  EngineWorld world(Medium::kLocal, kSize);
  const SegmentPlan plan({make_segment("a", {4096})}, Dtype::kFloat32, {0});
  const std::shared_ptr<PeerSchedule> schedule = crossover_schedule(kSize, 1);
  std::vector<Replica> replicas;
  for (int rank = 0; rank < kSize; ++rank) {
    Replica& replica = replicas.emplace_back(plan);
    for (size_t k = 0; k < 4096; ++k) {
      replica.tensors[0][k] = static_cast<float>((k * 37 + rank * 101) % 256);
    }
  }
  const auto sum = [&](size_t k) {
    double total = 0;
    for (const Replica& replica : replicas) total += replica.tensors[0][k];
    return total;
  };
  std::vector<double> before;
  for (size_t k = 0; k < 4096; ++k) before.push_back(sum(k));
  const uint32_t id = world.add_plan(plan, schedule);
  for (int round = 0; round < 10; ++round) world.round(id, replicas);
  for (size_t k = 0; k < 4096; ++k) ASSERT_EQ(sum(k), before[k]);
}

TEST(Engine, Bfloat16OnTheWireKeepsTheMeanToFloat32Rounding) {
  constexpr int kSize = 4;
  EngineWorld world(Medium::kLocal, kSize);
  const SegmentPlan plan({make_segment("a", {2000})}, Dtype::kBfloat16, {0});
  std::vector<Replica> replicas = random_replicas(plan, kSize, 9);
  const auto mean = [&](size_t k) {
    double total = 0;
    for (const Replica& replica : replicas) total += replica.tensors[0][k];
    return total / kSize;
  };
  std::vector<double> before;
  for (size_t k = 0; k < 2000; ++k) before.push_back(mean(k));
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(kSize, 1)));
  for (int round = 0; round < 20; ++round) world.round(id, replicas);
  for (size_t k = 0; k < 2000; ++k) ASSERT_NEAR(mean(k), before[k], 20 * 1e-6);
}

TEST(Engine, OneMessagePairPerSegmentAndOneModelPerRound) {
  constexpr int kSize = 4;
  EngineWorld world(Medium::kLocal, kSize);
  const SegmentPlan plan = small_plan();
  std::vector<Replica> replicas = random_replicas(plan, kSize, 1);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(kSize, 1)));
  for (int round = 0; round < 5; ++round) world.round(id, replicas);
  for (const auto& engine : world.engines) {
    const TransportCounters counters = engine->counters();
    EXPECT_EQ(counters.payload_sent_bytes, 5u * plan.wire_bytes());
    EXPECT_EQ(counters.payload_received_bytes, 5u * plan.wire_bytes());
    EXPECT_EQ(counters.messages_sent, 5u * 3);  // the empty segment needs none
    EXPECT_EQ(counters.messages_received, 5u * 3);
  }
}

TEST(Engine, EventsTellTheLifeOfEverySegmentInOrder) {
  EngineWorld world(Medium::kLocal, 2, {.event_capacity = 100});
  const SegmentPlan plan({make_segment("a", {64})}, Dtype::kFloat32, {0});
  std::vector<Replica> replicas = random_replicas(plan, 2, 1);
  world.round(world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)), 7), replicas);
  uint64_t next = 0;
  std::vector<EventKind> kinds;
  for (const EventRecord& record : world.engines[0]->events().read(0, next)) {
    EXPECT_EQ(record.round, 7u);
    if (record.kind == EventKind::kSent) {
      EXPECT_EQ(record.bytes, 256u);
      EXPECT_EQ(record.peer, 1);
    }
    if (record.kind != EventKind::kReceived) kinds.push_back(record.kind);
  }
  EXPECT_EQ(kinds, (std::vector{EventKind::kPosted, EventKind::kSendBegun, EventKind::kSent,
                                EventKind::kArrived, EventKind::kMixBegun, EventKind::kMixed}));
}

TEST(Engine, APeerOneRoundAheadIsNotHeldUp) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan({make_segment("a", {500000})}, Dtype::kFloat32, {0});
  const std::shared_ptr<PeerSchedule> schedule = crossover_schedule(2, 1);
  std::vector<Replica> replicas = random_replicas(plan, 2, 1);
  std::vector<Replica> reference = copy(plan, replicas);
  const uint32_t id = world.add_plan(plan, schedule);
  world.engines[0]->open_round(id, replicas[0].addresses);
  for (int turns = 0; turns < 1000; ++turns) world.turn();
  EXPECT_EQ(world.engines[0]->counters().messages_sent, 1u);
  EXPECT_EQ(world.engines[1]->counters().messages_received, 1u);
  world.engines[1]->open_round(id, replicas[1].addresses);
  world.close(id, replicas);
  reference_round(plan, *schedule, 0, reference);
  expect_equal(replicas, reference);
}

TEST(Engine, TwoPlansRunTheirRoundsIndependently) {
  EngineWorld world(Medium::kLocalWithFaults, 3);
  const SegmentPlan plan = small_plan();
  const std::shared_ptr<PeerSchedule> a = crossover_schedule(3, 1);
  const std::shared_ptr<PeerSchedule> b = complete_schedule(3);
  std::vector<Replica> first = random_replicas(plan, 3, 1);
  std::vector<Replica> second = random_replicas(plan, 3, 2);
  std::vector<Replica> reference_first = copy(plan, first);
  std::vector<Replica> reference_second = copy(plan, second);
  const uint32_t first_id = world.add_plan(plan, a);
  const uint32_t second_id = world.add_plan(plan, b);
  for (int rank = 0; rank < 3; ++rank) {
    world.engines[rank]->open_round(first_id, first[rank].addresses);
    world.engines[rank]->open_round(second_id, second[rank].addresses);
  }
  world.close(second_id, second);
  world.close(first_id, first);
  reference_round(plan, *a, 0, reference_first);
  reference_round(plan, *b, 0, reference_second);
  expect_equal(first, reference_first);
  expect_equal(second, reference_second);
}

TEST(Engine, SegmentsMayBeAwaitedOneByOneAndMixedIntoOtherMemory) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan({make_segment("a", {10}), make_segment("b", {20})}, Dtype::kFloat32,
                         {0, 1});
  const std::shared_ptr<PeerSchedule> schedule = crossover_schedule(2, 1);
  std::vector<Replica> replicas = random_replicas(plan, 2, 1);
  std::vector<Replica> reference = copy(plan, replicas);
  const uint32_t id = world.add_plan(plan, schedule);
  for (int rank = 0; rank < 2; ++rank) {
    world.engines[rank]->open_round(id, replicas[rank].addresses);
  }
  for (int turns = 0; turns < 100; ++turns) world.turn();
  std::vector<float> elsewhere = replicas[0].tensors[1];
  void* address = elsewhere.data();
  EXPECT_EQ(world.engines[0]->wait_segment(id, 1, {&address, 1}, 0.0), WaitStatus::kMixed);
  reference_round(plan, *schedule, 0, reference);
  EXPECT_TRUE(elsewhere == reference[0].tensors[1]);
  EXPECT_TRUE(world.engines[0]->is_open(id));
  EXPECT_EQ(world.engines[0]->round(id, 1), 1u);
  EXPECT_EQ(world.engines[0]->round(id, 0), 0u);
}

TEST(Engine, TakesALayerOverItsTransportBeforeTheFirstPlan) {
  EngineWorld world(Medium::kLocal, 2);
  int num_made = 0;
  const TransportLayer layer = {[&num_made](std::unique_ptr<Transport> below) {
    ++num_made;
    return below;
  }};
  for (const auto& engine : world.engines) engine->add_transport_layer(layer);
  const SegmentPlan plan = small_plan();
  std::vector<Replica> replicas = random_replicas(plan, 2, 1);
  world.round(world.add_plan(plan, crossover_schedule(2, 1)), replicas);
  EXPECT_EQ(num_made, 2);
  EXPECT_THROW(world.engines[0]->add_transport_layer(layer), InvalidArgument);
  const std::shared_ptr<PeerSchedule> shares =
      table_schedule({{{}, {{0, 0.5}}}}, Stochasticity::kColumn, false);
  EXPECT_THROW(world.add_plan(plan, shares), InvalidArgument) << "the layer carries no weights";
}

// Ranks on their own threads with real pollers: what a process does, less the process.
TEST_P(EngineOverMedia, ThreadsThatTrainAtTheirOwnPaceEqualTheReference) {
  const auto [medium, size] = GetParam();
  Fabric fabric = make_fabric(medium, size);
  const SegmentPlan plan = small_plan();
  const std::shared_ptr<PeerSchedule> schedule = crossover_schedule(size, 2);
  std::vector<Replica> replicas = random_replicas(plan, size, 6);
  std::vector<Replica> reference = copy(plan, replicas);
  constexpr int kRounds = 20;
  const auto train = [&](int rank) {
    const SteadyClock clock;
    Engine engine(
        {.rank = rank, .size = size},
        std::make_unique<StreamTransport>(stream_config(rank, size), std::move(fabric.pipes[rank])),
        system_poller(), clock);
    engine.start();
    const uint32_t id = engine.add_plan(plan, schedule, host_device(), 0);
    for (int round = 0; round < kRounds; ++round) {
      engine.open_round(id, replicas[rank].addresses);
      while (engine.close_round(id, replicas[rank].addresses, 0.2) == WaitStatus::kPending) {
      }
    }
    engine.shutdown(30.0);
  };
  {
    std::vector<std::jthread> threads;
    for (int rank = 0; rank < size; ++rank) threads.emplace_back(train, rank);
  }
  for (uint64_t round = 0; round < kRounds; ++round) {
    reference_round(plan, *schedule, round, reference);
  }
  expect_equal(replicas, reference);
}

}  // namespace
}  // namespace crossover::testing
