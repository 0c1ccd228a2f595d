// What every rank is told when something goes wrong.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "engine_world.h"

namespace crossover::testing {
namespace {

SegmentPlan one_segment() { return SegmentPlan({make_segment("fc", {256})}, Dtype::kFloat32, {0}); }

std::vector<Replica> zeros(const SegmentPlan& plan, int size) {
  std::vector<Replica> replicas;
  for (int rank = 0; rank < size; ++rank) replicas.emplace_back(plan);
  return replicas;
}

template <typename Error, typename Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "in: " << text << "\nmissing: " << part;
}

TEST(EngineFailure, AKilledRankIsNamedToEverySurvivorWithRoundAndSegment) {
  constexpr int kSize = 4;
  EngineWorld world(Medium::kLocal, kSize);
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, kSize);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(kSize, 1)));
  world.round(id, replicas);
  for (int rank = 0; rank < 3; ++rank) {
    world.engines[rank]->open_round(id, replicas[rank].addresses);
  }
  world.turn();
  world.network().kill(3);
  for (int turns = 0; turns < 100; ++turns) {
    for (int rank = 0; rank < 3; ++rank) world.engines[rank]->progress_once();
  }
  for (int rank = 0; rank < 3; ++rank) {
    const auto close = [&] { world.engines[rank]->close_round(id, replicas[rank].addresses, 0); };
    const std::string message = message_of<TransportError>(close);
    expect_contains(message, "plan 0, round 1, segment 0 'fc' (send to ");
    expect_contains(message, "rank 3: connection ended without a farewell");
    EXPECT_EQ(message_of<TransportError>(close), message) << "the first failure sticks";
  }
}

TEST(EngineFailure, ACauseOfOneRankReachesTheOthersThroughFarewells) {
  EngineWorld world(Medium::kLocal, 3);
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 3);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(3, 1)));
  world.engines[1]->fail(ErrorKind::kTransport, "ValueError: bad batch");
  for (int turns = 0; turns < 50; ++turns) world.turn();
  const std::string message =
      message_of<TransportError>([&] { world.engines[0]->open_round(id, replicas[0].addresses); });
  expect_contains(message, "rank 1 stopped; first cause, seen by rank 1: rank 1: ValueError");
}

TEST(EngineFailure, NonFiniteParametersAreNamedAndNeverSpread) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 2);
  replicas[1].tensors[0][17] = std::nanf("");
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)));
  for (int rank = 0; rank < 2; ++rank) {
    world.engines[rank]->open_round(id, replicas[rank].addresses);
  }
  for (int turns = 0; turns < 50; ++turns) world.turn();
  const std::string own = message_of<NonFiniteError>(
      [&] { world.engines[1]->close_round(id, replicas[1].addresses, 0); });
  expect_contains(own, "rank 1: segment 0 'fc'");
  const std::string other = message_of<TransportError>(
      [&] { world.engines[0]->close_round(id, replicas[0].addresses, 0); });
  expect_contains(other, "rank 1: segment 0 'fc'");
  for (const float value : replicas[0].tensors[0]) EXPECT_EQ(value, 0.0f);
}

TEST(EngineFailure, NonFiniteParametersPassWhenTheGuardIsOff) {
  EngineWorld world(Medium::kLocal, 2, {.non_finite = NonFinitePolicy::kIgnore});
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 2);
  replicas[1].tensors[0][17] = INFINITY;
  world.round(world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1))), replicas);
  EXPECT_TRUE(std::isinf(replicas[0].tensors[0][17]));
}

TEST(EngineFailure, ALongWaitWarnsThenFailsNamingThePeer) {
  EngineWorld world(Medium::kLocal, 2, {.stall_timeout_s = 300, .stall_warning_s = 60});
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 2);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)));
  world.engines[0]->open_round(id, replicas[0].addresses);
  const auto wait = [&] {
    world.engines[0]->close_round(id, replicas[0].addresses, 0);
    world.turn();
  };
  const auto live = [&](double seconds) {
    for (double at = 0; at < seconds; at += 1.0) {
      world.clock.advance(1.0);
      world.turn();
      world.turn();
    }
  };
  wait();
  live(59);
  wait();
  EXPECT_TRUE(world.engines[0]->take_warnings().empty());
  live(2);
  wait();
  const std::vector<std::string> warnings = world.engines[0]->take_warnings();
  ASSERT_EQ(warnings.size(), 1u);
  expect_contains(warnings[0], "round 0, segment 0 'fc'");
  expect_contains(warnings[0], "for rank 1: alive, but not yet in this round; error after 300 s");
  live(30);
  wait();
  EXPECT_TRUE(world.engines[0]->take_warnings().empty()) << "one warning, not one per wait";
  live(220);
  wait();
  expect_contains(message_of<ProgressTimeout>(wait), "for rank 1: alive, but");
}

TEST(EngineFailure, AWarningNamesADestinationThatHasNotMadeRoom) {
  EngineWorld world(Medium::kLocal, 2, {.stall_timeout_s = 300, .stall_warning_s = 60});
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 2);
  const std::vector<PeerRow> only_0_to_1 = {{}, {{0, 0.5}}};
  const uint32_t id = world.add_plan(
      plan, std::shared_ptr(table_schedule({only_0_to_1}, Stochasticity::kRow, false)));
  const auto close_on_0 = [&] {
    const WaitStatus status = world.engines[0]->close_round(id, replicas[0].addresses, 0);
    world.turn();
    return status;
  };
  for (int round = 0; round < 2; ++round) {
    world.engines[0]->open_round(id, replicas[0].addresses);
    world.turn();
    world.turn();
    EXPECT_EQ(close_on_0(), round == 0 ? WaitStatus::kMixed : WaitStatus::kPending);
  }
  world.clock.advance(61);
  close_on_0();
  const std::vector<std::string> warnings = world.engines[0]->take_warnings();
  ASSERT_EQ(warnings.size(), 1u);
  expect_contains(warnings[0], "round 1, segment 0 'fc' (send to 1, receive from nobody)");
  expect_contains(warnings[0], "has waited 61 s for rank 1: alive");
}

TEST(EngineFailure, ARankThatLeavesInOrderIsOnlyAnErrorIfItIsNeeded) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 2);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)));
  world.round(id, replicas);
  world.engines[1].reset();
  for (int turns = 0; turns < 20; ++turns) world.turn();
  EXPECT_EQ(world.engines[0]->close_round(id, replicas[0].addresses, 0), WaitStatus::kMixed);
  world.engines[0]->open_round(id, replicas[0].addresses);
  world.turn();
  const std::string message = message_of<TransportError>(
      [&] { world.engines[0]->close_round(id, replicas[0].addresses, 0); });
  expect_contains(message, "rank 1 has shut down");
}

TEST(EngineFailure, MistakesOfTheCallerAreInvalidArguments) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 2);
  Engine& engine = *world.engines[0];
  EXPECT_THROW(engine.open_round(0, replicas[0].addresses), InvalidArgument);
  const std::string sizes = message_of<InvalidArgument>(
      [&] { engine.add_plan(plan, std::shared_ptr(crossover_schedule(3, 1)), host_device(), 0); });
  EXPECT_EQ(sizes, "schedule 'crossover': expected one for 2 ranks, got one for 3");
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)));
  EXPECT_THROW(engine.open_round(id, {}), InvalidArgument);
  EXPECT_THROW(engine.close_round(id, {}, 0), InvalidArgument);
  engine.open_round(id, replicas[0].addresses);
  EXPECT_EQ(message_of<InvalidArgument>([&] { engine.open_round(id, replicas[0].addresses); }),
            "open_round: plan 0 has an open round");
  engine.remove_plan(id);
  EXPECT_THROW(engine.close_round(id, replicas[0].addresses, 0), InvalidArgument);
}

TEST(EngineFailure, ShutdownIsIdempotentAndLaterCallsSaySo) {
  EngineWorld world(Medium::kLocal, 2);
  const SegmentPlan plan = one_segment();
  std::vector<Replica> replicas = zeros(plan, 2);
  const uint32_t id = world.add_plan(plan, std::shared_ptr(crossover_schedule(2, 1)));
  world.engines[0]->shutdown(1.0);
  world.engines[0]->shutdown(1.0);
  EXPECT_EQ(
      message_of<InvalidArgument>([&] { world.engines[0]->open_round(id, replicas[0].addresses); }),
      "the engine has been shut down");
}

TEST(EngineFailure, AnEngineAbandonedAfterForkRefusesWork) {
  EngineWorld world(Medium::kLocal, 2);
  const uint32_t id = world.add_plan(one_segment(), std::shared_ptr(crossover_schedule(2, 1)));
  Engine& engine = *world.engines[0];
  const auto in_the_child = [&] {
    engine.abandon_after_fork();
    const std::string refusal = message_of<InvalidArgument>([&] { engine.open_round(id, {}); });
    engine.shutdown(1.0);
    _exit(refusal == "nothing was thrown" ? 1 : 0);
  };
  EXPECT_EXIT(in_the_child(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace crossover::testing
