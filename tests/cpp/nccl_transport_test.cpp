// Messages through NCCL, by the fake: agreement, order, completion.
#include "cuda/nccl_transport.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "nccl_world.h"

namespace crossover::testing {
namespace {

using Kind = TransportEvent::Kind;

std::vector<std::byte> pattern(size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 31 + seed * 7 + i / 256);
  return bytes;
}

void expect_one_message(NcclWorld& world, size_t size, const MessageTag& tag) {
  ResidentSource source(pattern(size, 1));
  ResidentSink sink(size);
  world.ranks[1]->receive(0, tag, sink, 11);
  world.ranks[0]->send(1, tag, source, 22);
  world.post(0, tag);
  world.post(1, tag);
  ASSERT_TRUE(world.turn_until([&] { return sink.released == 1 && world.quiet(1); }));
  EXPECT_TRUE(sink.bytes == source.bytes);
  EXPECT_EQ(world.last(0).kind, Kind::kSent);
  EXPECT_EQ(world.last(0).token, 22u);
  EXPECT_EQ(world.last(1).kind, Kind::kReceived);
  EXPECT_EQ(world.last(1).token, 11u);
  EXPECT_EQ(world.last(1).peer, 0);
  EXPECT_EQ(source.released, 1);
}

TEST(NcclTransport, AMessageOfAnySizeArrivesUnchanged) {
  NcclWorld world(2);
  uint64_t round = 0;
  for (const size_t size : {1, 2, 7, 8, 4097, (3 << 20) + 5}) {
    expect_one_message(world, size, {.round = round++});
  }
}

TEST(NcclTransport, CallsThatTakeManyPollsAreAwaited) {
  NcclWorld world(2, "in_progress=9");
  for (uint64_t round = 0; round < 4; ++round) expect_one_message(world, 1000, {.round = round});
}

// Rank r sends segment s of round n to r + 1 + (s + n) % (size - 1), turned in an order of its own.
void expect_rounds(int size, int num_rounds, const std::string& script) {
  NcclWorld world(size, script);
  constexpr uint32_t kSegments = 3;
  for (int round = 0; round < num_rounds; ++round) {
    std::vector<std::unique_ptr<ResidentSource>> sources;
    std::vector<std::unique_ptr<ResidentSink>> sinks;
    for (int rank = 0; rank < size; ++rank) {
      for (uint32_t segment = 0; segment < kSegments; ++segment) {
        const int shift = 1 + (static_cast<int>(segment) + round) % (size - 1);
        const MessageTag tag{.segment = segment, .round = static_cast<uint64_t>(round)};
        const size_t bytes = 1000 + segment;
        const int from = (rank + size - shift) % size;
        sinks.push_back(std::make_unique<ResidentSink>(bytes));
        sources.push_back(std::make_unique<ResidentSource>(pattern(bytes, rank * 16 + round)));
        world.ranks[rank]->receive(from, tag, *sinks.back(), 0);
        world.ranks[rank]->send((rank + shift) % size, tag, *sources.back(), 0);
        world.post(rank, tag);
        if (rank % 2 == 0) world.turn();
      }
    }
    ASSERT_TRUE(world.turn_until([&] {
      for (int rank = 0; rank < size; ++rank) {
        if (world.count(rank, Kind::kReceived) < kSegments * (round + 1u)) return false;
        if (!world.quiet(rank)) return false;
      }
      return true;
    })) << "round "
        << round << " of " << size << " ranks";
    for (int rank = 0; rank < size; ++rank) {
      for (uint32_t segment = 0; segment < kSegments; ++segment) {
        const int shift = 1 + (static_cast<int>(segment) + round) % (size - 1);
        const int from = (rank + size - shift) % size;
        EXPECT_TRUE(sinks[rank * kSegments + segment]->bytes ==
                    pattern(1000 + segment, from * 16 + round));
      }
    }
  }
}

TEST(NcclTransport, RoundsOfChangingPairsNeverBlockEachOther) {
  expect_rounds(2, 3, "");
  expect_rounds(3, 4, "in_progress=2");
  expect_rounds(5, 6, "in_progress=1");
}

TEST(NcclTransport, NothingIsLaunchedBeforeThePeerHasPosted) {
  NcclWorld world(2);
  ASSERT_TRUE(world.settle());
  const uint64_t before = fake_nccl().enqueued(world.streams[0]->stream());
  ResidentSource source(pattern(100, 1));
  ResidentSink sink(100);
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, source, 2);
  world.post(0, {});
  for (int i = 0; i < 50; ++i) world.turn();
  EXPECT_EQ(fake_nccl().enqueued(world.streams[0]->stream()), before);
  EXPECT_EQ(source.acquired, 0);
  EXPECT_TRUE(world.asleep(0)) << "a rank that waits for another does not poll";
  world.post(1, {});
  EXPECT_TRUE(world.turn_until([&] { return world.count(1, Kind::kReceived) == 1; }));
}

TEST(NcclTransport, WithoutHostReadyALaunchWaitsForNobody) {
  NcclWorld world(2, "", [](NcclTransportConfig& config) { config.host_ready = false; });
  ASSERT_TRUE(world.settle());
  ResidentSource source(pattern(100, 1));
  ResidentSink sink(100);
  world.ranks[0]->send(1, {}, source, 2);
  world.post(0, {});
  EXPECT_TRUE(world.turn_until([&] { return world.count(0, Kind::kSent) == 1; }));
  EXPECT_FALSE(world.asleep(0)) << "a group in flight is looked after";
  world.ranks[1]->receive(0, {}, sink, 1);
  world.post(1, {});
  EXPECT_TRUE(world.turn_until([&] { return world.quiet(0) && sink.bytes == source.bytes; }));
}

TEST(NcclTransport, CompletionIsToldAfterTheLaunchHasEnded) {
  NcclWorld world(2, "in_progress=5");
  ASSERT_TRUE(world.settle());
  ResidentSource source(pattern(10, 1));
  ResidentSink sink(10);
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, source, 2);
  world.post(0, {});
  world.post(1, {});
  ASSERT_TRUE(world.turn_until([&] { return source.acquired == 1; }));
  EXPECT_EQ(source.released, 0);
  EXPECT_TRUE(world.events[0].empty());
  EXPECT_TRUE(world.turn_until([&] { return source.released == 1; }));
  EXPECT_EQ(world.count(0, Kind::kSent), 1u);
}

TEST(NcclTransport, PeersAreContactedOnceAtTheStart) {
  NcclWorld world(3);
  EXPECT_FALSE(world.asleep(0));
  ASSERT_TRUE(world.settle());
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_EQ(fake_nccl().enqueued(world.streams[rank]->stream()), 1u);
    EXPECT_TRUE(world.quiet(rank));
    EXPECT_EQ(world.streams[rank]->made_current, 1);
  }
}

TEST(NcclTransport, TheCostOfTheFirstContactIsReported) {
  NcclWorld world(2);
  world.turn();
  world.clock.advance(0.75);
  ASSERT_TRUE(world.settle());
  EXPECT_DOUBLE_EQ(world.ranks[0]->counters().first_contact_s, 0.75);
}

TEST(NcclTransport, CountsMessagesAndTheControlBytesBeside) {
  NcclWorld world(2);
  expect_one_message(world, 5000, {});
  const TransportCounters counters = world.ranks[0]->counters();
  EXPECT_EQ(counters.payload_sent_bytes, 5000u);
  EXPECT_EQ(counters.messages_sent, 1u);
  EXPECT_GT(counters.wire_sent_bytes, 5000u);
  EXPECT_LT(counters.wire_sent_bytes, 5500u);
  EXPECT_EQ(world.ranks[1]->counters().payload_received_bytes, 5000u);
}

TEST(NcclTransport, SegmentsThatDifferInSizeAreAnErrorThatNamesBoth) {
  NcclWorld world(2);
  ResidentSource source(pattern(100, 1));
  ResidentSink sink(104);
  const MessageTag tag{.plan = 1, .segment = 2, .round = 3};
  world.ranks[1]->receive(0, tag, sink, 1);
  world.ranks[0]->send(1, tag, source, 1);
  world.post(0, tag);
  world.post(1, tag);
  ASSERT_TRUE(world.turn_until([&] { return world.count(1, Kind::kPeerLost) == 1; }));
  EXPECT_NE(world.last(1).farewell.cause.find("plan 1, round 3, segment 2, phase 0: rank 0 sends "
                                              "100 bytes, this rank has room for 104"),
            std::string::npos)
      << world.last(1).farewell.cause;
  EXPECT_EQ(sink.acquired, 0);
}

TEST(NcclTransport, AForgottenPlanIsDroppedAndOthersGoOn) {
  NcclWorld world(2);
  ResidentSource dropped(pattern(10, 1));
  world.ranks[0]->send(1, {.plan = 0}, dropped, 1);
  world.post(0, {.plan = 0});
  for (int i = 0; i < 10; ++i) world.turn();
  world.ranks[0]->forget_plan(0);
  world.ranks[1]->forget_plan(0);
  expect_one_message(world, 100, {.plan = 1});
  EXPECT_EQ(dropped.acquired, 0);
}

TEST(NcclTransport, APlanForgottenInMidLaunchIsReleasedFirst) {
  NcclWorld world(2, "in_progress=5");
  ResidentSource source(pattern(10, 1));
  ResidentSink sink(10);
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, source, 2);
  world.post(0, {});
  world.post(1, {});
  ASSERT_TRUE(world.turn_until([&] { return source.acquired == 1 && sink.acquired == 1; }));
  world.ranks[0]->forget_plan(0);
  EXPECT_EQ(source.released, 1);
  for (int i = 0; i < 20; ++i) world.turn();
  EXPECT_EQ(world.count(0, Kind::kSent), 0u);
}

TEST(NcclTransport, AFarewellComesAfterTheMessagesUnderWay) {
  NcclWorld world(2, "in_progress=4");
  ASSERT_TRUE(world.settle());
  ResidentSource source(pattern(100, 1));
  ResidentSink sink(100);
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, source, 2);
  world.post(0, {});
  world.post(1, {});
  ASSERT_TRUE(world.turn_until([&] { return source.acquired == 1; }));
  world.ranks[0]->say_farewell({});
  ASSERT_TRUE(world.turn_until([&] { return world.count(1, Kind::kPeerLeft) == 1; }));
  EXPECT_EQ(world.events[1].front().kind, Kind::kReceived);
  EXPECT_TRUE(sink.bytes == source.bytes);
}

TEST(NcclTransport, AnOrderlyEndDestroysEveryCommunicator) {
  const int before = fake_nccl().standing();
  NcclWorld world(3, "in_progress=3");
  expect_one_message(world, 100, {});
  for (auto& rank : world.ranks) rank->say_farewell({});
  ASSERT_TRUE(world.turn_until([&] {
    return world.ranks[0]->drained() && world.ranks[1]->drained() && world.ranks[2]->drained();
  }));
  world.ranks.clear();
  EXPECT_EQ(fake_nccl().standing(), before);
}

}  // namespace
}  // namespace crossover::testing
