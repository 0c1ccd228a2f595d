// Rounds that are mixed while they arrive: the same bits as from inboxes, and what a failure
// leaves.
#include "core/streamed_mix.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "core/engine.h"
#include "dense_reference.h"
#include "engine_world.h"
#include "host/system_poller.h"

namespace crossover::testing {
namespace {

/// More segments than have room at once, odd and empty ones among them.
SegmentPlan long_plan(Dtype wire = Dtype::kFloat32, Dtype dtype = Dtype::kFloat32) {
  std::vector<Segment> segments{make_segment("stem", {5, 0, 128}, dtype),
                                make_segment("large", {5001, 2250, 1}, dtype),
                                make_segment("empty", {0}, dtype)};
  while (segments.size() < 12) {
    segments.push_back(make_segment("s" + std::to_string(segments.size()), {3750, 7}, dtype));
  }
  return SegmentPlan(std::move(segments), wire, {3, 2, 1, 0, 5, 4, 6, 8, 7, 9, 11, 10});
}

std::vector<std::shared_ptr<const Schedule>> some_schedules(int size) {
  return {crossover_schedule(size, 5),
          ring_schedule(size),
          complete_schedule(size),
          exponential_xor_schedule(size),
          all_reduce_schedule(size),
          group_crossover_schedule(size, 2, 5),
          repeated_schedule(crossover_schedule(size, 5), 2),
          table_schedule({ring_schedule(size)->rows({0, 0})}, Stochasticity::kColumn, false)};
}

class StreamedRounds : public ::testing::TestWithParam<std::tuple<Medium, int>> {};

INSTANTIATE_TEST_SUITE_P(Media, StreamedRounds,
                         ::testing::Combine(::testing::Values(Medium::kLocal,
                                                              Medium::kLocalWithFaults,
                                                              Medium::kShared, Medium::kSocket),
                                            ::testing::Values(2, 3)),
                         [](const auto& info) {
                           return medium_name(std::get<0>(info.param)) +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(StreamedRounds, HaveTheBitsOfRoundsThatAreMixedFromInboxes) {
  const auto [medium, size] = GetParam();
  for (const Dtype wire : {Dtype::kFloat32, Dtype::kBfloat16, Dtype::kInt8Blocks}) {
    EngineWorld world(medium, size);
    const SegmentPlan plan = long_plan(wire);
    for (const auto& schedule : some_schedules(size)) {
      std::vector<Replica> streamed = random_replicas(plan, size, 3);
      std::vector<Replica> reference = copy(plan, streamed);
      const uint32_t few = world.add_plan(plan, schedule, 10, Rooms::kFew);
      const uint32_t all = world.add_plan(plan, schedule, 10, Rooms::kAll);
      for (int round = 0; round < 2; ++round) {
        world.round(few, streamed);
        world.round(all, reference);
        expect_equal(streamed, reference);
        EXPECT_EQ(world.engines[0]->weights(few), world.engines[0]->weights(all));
      }
      for (auto& engine : world.engines) {
        engine->remove_plan(few);
        engine->remove_plan(all);
      }
    }
  }
}

TEST(StreamedRound, NarrowTensorsAreRoundedOnceWhateverTheNumberOfPeers) {
  constexpr int kSize = 3;
  const SegmentPlan plan({make_segment("a", {70001}, Dtype::kBfloat16)}, Dtype::kFloat32, {0});
  std::vector<std::vector<std::vector<uint16_t>>> results;
  for (const Rooms rooms : {Rooms::kFew, Rooms::kAll}) {
    EngineWorld world(Medium::kLocalWithFaults, kSize);
    std::vector<std::vector<uint16_t>> tensors(kSize, std::vector<uint16_t>(70001));
    for (int rank = 0; rank < kSize; ++rank) {
      for (size_t k = 0; k < tensors[rank].size(); ++k) {
        tensors[rank][k] = static_cast<uint16_t>(0x3F80 + (k * 7 + rank * 31) % 120);
      }
    }
    const uint32_t id = world.add_plan(plan, std::shared_ptr(complete_schedule(kSize)), 0, rooms);
    std::vector<void*> addresses;
    for (auto& tensor : tensors) addresses.push_back(tensor.data());
    const auto own = [&](int rank) { return std::span(addresses).subspan(rank, 1); };
    for (int rank = 0; rank < kSize; ++rank) world.engines[rank]->open_round(id, own(rank));
    for (int left = kSize; left > 0;) {
      world.turn();
      left = 0;
      for (int rank = 0; rank < kSize; ++rank) {
        left += world.engines[rank]->close_round(id, own(rank), 0) == WaitStatus::kPending ? 1 : 0;
      }
    }
    results.push_back(std::move(tensors));
  }
  EXPECT_TRUE(results[0] == results[1]);
}

TEST(StreamedRound, ARankThatIsLateTakesInFourSegmentsAndNoMore) {
  EngineWorld world(Medium::kShared, 2);
  std::vector<Segment> segments;
  std::vector<uint32_t> order;
  for (uint32_t s = 0; s < 10; ++s) {
    segments.push_back(make_segment("s" + std::to_string(s), {100000}));
    order.push_back(s);
  }
  const SegmentPlan plan(std::move(segments), Dtype::kFloat32, order);
  std::vector<Replica> replicas = random_replicas(plan, 2, 1);
  std::vector<Replica> reference = copy(plan, replicas);
  const auto schedule = std::shared_ptr<PeerSchedule>(crossover_schedule(2, 1));
  const uint32_t id = world.add_plan(plan, schedule, 0, Rooms::kFew);
  world.engines[1]->open_round(id, replicas[1].addresses);
  for (int turns = 0; turns < 500; ++turns) {
    world.turn();
    world.engines[1]->close_round(id, replicas[1].addresses, 0);
  }
  EXPECT_EQ(world.engines[0]->counters().payload_received_bytes, 4u * 400000);
  world.engines[0]->open_round(id, replicas[0].addresses);
  world.close(id, replicas);
  reference_round(plan, *schedule, 0, reference);
  expect_equal(replicas, reference);
}

// Rank 0 holds ones, rank 1 threes: an element is 1, or 2 once it is mixed.
TEST(StreamedRound, APeerKilledInMidStreamLeavesEveryElementOldOrNewAndTheErrorSticks) {
  EngineWorld world(Medium::kLocalWithFaults, 2);
  const SegmentPlan plan = long_plan();
  std::vector<Replica> replicas;
  for (int rank = 0; rank < 2; ++rank) {
    Replica& replica = replicas.emplace_back(plan);
    for (auto& tensor : replica.tensors) std::fill(tensor.begin(), tensor.end(), 1.0F + 2 * rank);
  }
  const uint32_t id =
      world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)), 0, Rooms::kFew);
  for (int rank = 0; rank < 2; ++rank) {
    world.engines[rank]->open_round(id, replicas[rank].addresses);
  }
  const auto mixed = [&] {
    int64_t count = 0;
    for (const auto& tensor : replicas[0].tensors) {
      count += std::count(tensor.begin(), tensor.end(), 2.0F);
    }
    return count;
  };
  const auto close = [&](int rank) {
    return world.engines[rank]->close_round(id, replicas[rank].addresses, 0);
  };
  while (mixed() < 15000) {
    world.turn();
    ASSERT_EQ(close(0), WaitStatus::kPending);
    close(1);
  }
  world.network().kill(1);
  std::string first;
  for (int turns = 0; turns < 2000 && first.empty(); ++turns) {
    try {
      close(0);
    } catch (const TransportError& error) {
      first = error.what();
    }
  }
  EXPECT_NE(first.find("rank 1: connection ended without a farewell"), std::string::npos) << first;
  const int64_t at_the_failure = mixed();
  try {
    close(0);
    FAIL() << "the first failure sticks";
  } catch (const TransportError& error) {
    EXPECT_EQ(error.what(), first);
  }
  EXPECT_THROW(world.engines[0]->open_round(id, replicas[0].addresses), TransportError);
  EXPECT_EQ(mixed(), at_the_failure) << "nothing is written after the error";
  for (const auto& tensor : replicas[0].tensors) {
    for (const float value : tensor) ASSERT_TRUE(value == 1.0F || value == 2.0F) << value;
  }
}

TEST(StreamedRound, ANanIsNamedAndNeverSpreads) {
  EngineWorld world(Medium::kShared, 2);
  const SegmentPlan plan = long_plan();
  std::vector<Replica> replicas = random_replicas(plan, 2, 1);
  replicas[1].tensors[4][2000] = std::nanf("");  // late in the large segment
  const uint32_t id =
      world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)), 0, Rooms::kFew);
  for (int rank = 0; rank < 2; ++rank) {
    world.engines[rank]->open_round(id, replicas[rank].addresses);
  }
  std::vector<std::string> errors(2);
  for (int turns = 0; turns < 2000; ++turns) {
    world.turn();
    for (int rank = 0; rank < 2; ++rank) {
      try {
        world.engines[rank]->close_round(id, replicas[rank].addresses, 0);
      } catch (const CrossoverError& error) {
        errors[rank] = error.what();
      }
    }
  }
  for (const std::string& error : errors) {
    EXPECT_NE(error.find("segment 1 'large': parameter 'large.1' holds 1 non-finite value"),
              std::string::npos)
        << error;
  }
  for (const auto& tensor : replicas[0].tensors) {
    for (const float value : tensor) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST(StreamedRound, IsOpenedAndClosedWhole) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = long_plan();
  std::vector<Replica> replicas = random_replicas(plan, 2, 1);
  const uint32_t id =
      world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)), 0, Rooms::kFew);
  Engine& engine = *world.engines[0];
  const auto own = std::span<void* const>(replicas[0].addresses).first(3);
  EXPECT_EQ(engine.close_round(id, replicas[0].addresses, 0), WaitStatus::kMixed);
  EXPECT_THROW(engine.open_segment(id, 0, own), InvalidArgument);
  EXPECT_THROW(engine.wait_segment(id, 0, own, 0), InvalidArgument);
}

TEST(StreamedRound, CallersAndProgressThreadsTakeTurnsAtDriving) {
  constexpr int kSize = 3;
  constexpr int kRounds = 12;
  const SegmentPlan plan = long_plan();
  const std::shared_ptr<PeerSchedule> schedule = crossover_schedule(kSize, 9);
  std::vector<Replica> reference = random_replicas(plan, kSize, 2);
  std::vector<std::vector<Replica>> replicas;
  for (int id = 0; id < 2; ++id) replicas.push_back(copy(plan, reference));
  Fabric fabric = make_fabric(Medium::kShared, kSize);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < kSize; ++rank) {
    ranks.emplace_back([&, rank] {
      const SteadyClock clock;
      EngineConfig config;
      config.rank = rank;
      config.size = kSize;
      Engine engine(config,
                    std::make_unique<StreamTransport>(stream_config(rank, kSize),
                                                      std::move(fabric.pipes[rank])),
                    system_poller(), clock);
      engine.start();
      for (const Rooms rooms : {Rooms::kFew, Rooms::kAll}) {
        engine.add_plan(plan, schedule, host_device(), 0, {.rooms = rooms});
      }
      for (int round = 0; round < kRounds; ++round) {
        for (uint32_t id = 0; id < 2; ++id) {
          engine.open_round(id, replicas[id][rank].addresses);
        }
        for (uint32_t id = 0; id < 2; ++id) {
          while (engine.close_round(id, replicas[id][rank].addresses, 0.01) ==
                 WaitStatus::kPending) {
          }
        }
      }
      engine.shutdown(10.0);
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (int round = 0; round < kRounds; ++round) reference_round(plan, *schedule, round, reference);
  expect_equal(replicas[0], reference);
  expect_equal(replicas[1], reference);
}

TEST(BufferPool, HoldsNoMoreThanWasInUseAtOnce) {
  const std::shared_ptr<HostDevice> device = host_device();
  BufferPool pool(*device);
  std::unique_ptr<DeviceBuffer> small = pool.take(100);
  std::unique_ptr<DeviceBuffer> large = pool.take(1000);
  const std::byte* const large_at = large->data();
  pool.give(std::move(small));
  pool.give(std::move(large));
  pool.give(nullptr);
  EXPECT_EQ(pool.take(500)->data(), large_at) << "the smallest that is large enough";
  EXPECT_EQ(pool.take(100)->size_bytes(), 100u);
  pool.give(device->allocate(10));
  EXPECT_EQ(pool.take(20)->size_bytes(), 20u);
  EXPECT_EQ(pool.take(5)->size_bytes(), 5u) << "the one that was too small is gone";
}

}  // namespace
}  // namespace crossover::testing
