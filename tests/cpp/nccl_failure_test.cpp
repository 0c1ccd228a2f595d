// What goes wrong under NCCL, injected: errors, silence, calls and groups without an end.
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "core/error.h"
#include "host/host_device.h"
#include "nccl_world.h"

namespace crossover::testing {
namespace {

using Kind = TransportEvent::Kind;

class NcclFailure : public ::testing::Test {
 protected:
  // Hung threads of a test end here, not in the next one.
  void TearDown() override { fake_nccl().script(""); }

  // Posts one exchange between ranks 0 and 1.
  void post_pair(NcclWorld& world) {
    for (int rank = 0; rank < 2; ++rank) {
      world.ranks[rank]->receive(1 - rank, {}, sinks_[rank], 1);
      world.ranks[rank]->send(1 - rank, {}, sources_[rank], 2);
      world.post(rank, {});
    }
  }
  // Turns until a rank throws; its message.
  static std::string error_of(NcclWorld& world, double step_s) {
    for (int turns = 0; turns < 5000; ++turns) {
      world.clock.advance(step_s);
      try {
        world.turn();
      } catch (const TransportError& error) {
        return error.what();
      }
    }
    return "no error";
  }
  static bool contains(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
  }

  std::vector<ResidentSource> sources_{2, ResidentSource(std::vector<std::byte>(64))};
  std::vector<ResidentSink> sinks_{2, ResidentSink(64)};
};

TEST_F(NcclFailure, AnAsynchronousErrorNamesTheRankTheGroupAndTheReason) {
  NcclWorld world(2, "failing_group=1;rank=1");
  post_pair(world);
  const std::string text = error_of(world, 0.0);
  EXPECT_TRUE(contains(text,
                       "rank 1: NCCL: after ncclGroupEnd of plan 0, round 0, segment 0, "
                       "phase 0: remote process exited"))
      << text;
}

TEST_F(NcclFailure, AfterAnErrorControlTrafficGoesOnAndTheOthersLearnTheCause) {
  NcclWorld world(2, "failing_group=1;rank=1");
  post_pair(world);
  const std::string text = error_of(world, 0.0);
  world.ranks[1]->say_farewell({true, 1, text});
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kPeerLeft) == 1; }));
  EXPECT_TRUE(world.last(0).farewell.failed);
  EXPECT_EQ(world.last(0).farewell.cause, text);
  EXPECT_TRUE(world.turn_until([&] { return world.ranks[1]->drained(); }));
}

TEST_F(NcclFailure, ACallWithoutAnEndIsGivenUpAtItsDeadline) {
  NcclWorld world(2, "stuck_call=1;rank=0");
  post_pair(world);
  const std::string text = error_of(world, 1.0);
  EXPECT_TRUE(contains(text,
                       "rank 0: NCCL: ncclGroupEnd of plan 0, round 0, segment 0, phase 0 "
                       "has been in progress for 121 s"))
      << text;
}

TEST_F(NcclFailure, AFirstContactWithoutAnEndIsGivenUpAtItsDeadline) {
  NcclWorld world(2, "stuck_call=0;rank=0");
  const std::string text = error_of(world, 1.0);
  EXPECT_TRUE(contains(text, "ncclGroupEnd of the first contact with 1 peers")) << text;
}

TEST_F(NcclFailure, AGroupWithoutAnEndIsGivenUpAtItsDeadlineWithItsPeers) {
  NcclWorld world(2, "stuck_group=1;rank=0");
  post_pair(world);
  const std::string text = error_of(world, 5.0);
  EXPECT_TRUE(contains(text,
                       "rank 0: NCCL: plan 0, round 0, segment 0, phase 0, with rank 1 was "
                       "launched 18"))
      << text;
  EXPECT_TRUE(contains(text, "every peer is alive")) << text;
}

TEST_F(NcclFailure, ADeadPeerIsFoundByControlWhileItsGroupWaitsForEver) {
  NcclWorld world(2, "stuck_group=1", {}, 10.0);
  post_pair(world);
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kReceived) == 1; }));
  world.network.kill(1);
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kPeerLost) == 1; }));
  EXPECT_EQ(world.last(0).peer, 1);
  EXPECT_FALSE(world.quiet(0));
  world.ranks[0]->say_farewell({true, 0, "rank 1 is gone"});
  EXPECT_TRUE(world.turn_until([&] { return world.quiet(0); })) << "the abort ends the kernels";
}

TEST_F(NcclFailure, ASilentPeerIsLostByTheLivenessDeadline) {
  NcclWorld world(2, "", {}, 10.0);
  ASSERT_TRUE(world.settle());
  for (int second = 0; second < 12; ++second) {
    world.clock.advance(1.0);
    world.ranks[0]->progress(world.clock.now_s(), world.events[0]);
  }
  ASSERT_EQ(world.count(0, Kind::kPeerLost), 1u);
  EXPECT_TRUE(contains(world.last(0).farewell.cause, "no sign of life"));
}

TEST_F(NcclFailure, AnAbortThatNeverReturnsHoldsNobodyUp) {
  NcclWorld world(2, "stuck_group=1;hang_end=1",
                  [](NcclTransportConfig& config) { config.communicator.end_timeout_s = 0.05; });
  post_pair(world);
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kReceived) == 1; }));
  const auto began = std::chrono::steady_clock::now();
  world.ranks[0]->say_farewell({true, 0, "given up"});
  EXPECT_TRUE(world.turn_until([&] { return world.ranks[0]->drained(); }));
  world.ranks.clear();
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(2));
}

TEST_F(NcclFailure, AnEndUnderACallInProgressHoldsNobodyUp) {
  const int before = fake_nccl().standing();
  {
    NcclWorld world(2, "stuck_call=1");
    post_pair(world);
    ASSERT_TRUE(world.turn_until([&] { return sources_[0].acquired == 1; }));
    world.ranks[0]->say_farewell({true, 0, "given up"});
    EXPECT_TRUE(world.turn_until([&] { return world.ranks[0]->drained(); }));
  }
  EXPECT_EQ(fake_nccl().standing(), before);
}

TEST_F(NcclFailure, AnOrderlyFarewellOfAPeerWithOpenMessagesIsHeldBackOnlySoLong) {
  NcclWorld world(2, "stuck_group=1;rank=0", {}, 10.0);
  post_pair(world);
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kReceived) == 1; }));
  world.ranks[1]->say_farewell({});
  for (int i = 0; i < 50; ++i) world.turn();
  EXPECT_EQ(world.count(0, Kind::kPeerLeft), 0u);
  for (int second = 0; second < 11; ++second) {
    world.clock.advance(1.0);
    for (int i = 0; i < 5; ++i) world.turn();
  }
  EXPECT_EQ(world.count(0, Kind::kPeerLeft), 1u);
}

TEST_F(NcclFailure, TensorsInHostMemoryAreRefusedByName) {
  NcclWorld world(2);
  std::vector<float> tensor(8);
  void* address = tensor.data();
  const int64_t numel = 8;
  const auto source =
      host_device()->source({.tensors = {Dtype::kFloat32, {&address, 1}, {&numel, 1}},
                             .slice = {0, 8},
                             .wire = Dtype::kFloat32,
                             .non_finite = NonFinitePolicy::kRaise,
                             .where = "segment 0"});
  ResidentSink sink(32);
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, *source, 2);
  world.post(0, {});
  world.post(1, {});
  const std::string text = error_of(world, 0.0);
  EXPECT_TRUE(contains(text, "its memory is not on a CUDA device")) << text;
}

TEST_F(NcclFailure, AProcessThatWasStoppedItselfBlamesNobody) {
  NcclWorld world(2, "stuck_group=1;rank=0");
  post_pair(world);
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kReceived) == 1; }));
  world.clock.advance(5000.0);
  EXPECT_NO_THROW(world.turn());
  EXPECT_EQ(world.count(0, Kind::kPeerLost), 0u);
}

}  // namespace
}  // namespace crossover::testing
