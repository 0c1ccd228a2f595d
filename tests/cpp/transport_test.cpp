// The conformance suite of transports, over every medium.
#include "core/transport.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "core/message.h"
#include "world.h"

namespace crossover::testing {
namespace {

using Kind = TransportEvent::Kind;

std::vector<std::byte> random_bytes(size_t size, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) b = static_cast<std::byte>(generator());
  return bytes;
}

class BytesSource final : public MessageSource {
 public:
  BytesSource(std::vector<std::byte> bytes, size_t unit) : bytes_(std::move(bytes)), unit_(unit) {}
  size_t num_bytes() const override { return bytes_.size(); }
  size_t produce(std::span<std::byte> out) override {
    const size_t n = std::min(out.size() / unit_ * unit_, bytes_.size() - at_);
    std::copy_n(bytes_.begin() + static_cast<ptrdiff_t>(at_), n, out.begin());
    at_ += n;
    return n;
  }

 private:
  std::vector<std::byte> bytes_;
  size_t unit_;
  size_t at_ = 0;
};

class BytesSink final : public MessageSink {
 public:
  BytesSink(size_t size, size_t unit) : size_(size), unit_(unit) {}
  size_t num_bytes() const override { return size_; }
  size_t consume(std::span<const std::byte> in) override {
    const size_t n = in.size() / unit_ * unit_;
    bytes.insert(bytes.end(), in.begin(), in.begin() + static_cast<ptrdiff_t>(n));
    return n;
  }
  std::vector<std::byte> bytes;

 private:
  size_t size_;
  size_t unit_;
};

class World {
 public:
  World(Medium medium, int size, double timeout_s = 30.0) : fabric_(make_fabric(medium, size)) {
    for (int rank = 0; rank < size; ++rank) {
      ranks.push_back(std::make_unique<StreamTransport>(stream_config(rank, size, timeout_s),
                                                        std::move(fabric_.pipes[rank])));
    }
    events.resize(size);
  }

  void turn() {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      if (ranks[rank]) ranks[rank]->progress(clock.now_s(), events[rank]);
    }
  }
  bool turn_until(const std::function<bool()>& done) {
    for (int turns = 0; turns < 200000; ++turns) {
      if (done()) return true;
      turn();
    }
    return false;
  }
  size_t count(int rank, Kind kind) const {
    return std::count_if(events[rank].begin(), events[rank].end(),
                         [kind](const TransportEvent& event) { return event.kind == kind; });
  }
  const TransportEvent& last(int rank) const { return events[rank].back(); }
  LocalNetwork& network() { return *fabric_.network; }

  ManualClock clock;
  std::vector<std::unique_ptr<StreamTransport>> ranks;
  std::vector<std::vector<TransportEvent>> events;

 private:
  Fabric fabric_;
};

class TransportSuite : public ::testing::TestWithParam<Medium> {};

INSTANTIATE_TEST_SUITE_P(Media, TransportSuite,
                         ::testing::Values(Medium::kLocal, Medium::kLocalWithFaults,
                                           Medium::kShared, Medium::kSocket),
                         [](const auto& info) { return medium_name(info.param); });

void exchange_one(World& world, size_t size, size_t unit, const MessageTag& tag) {
  const std::vector<std::byte> bytes = random_bytes(size, 7);
  BytesSource source(bytes, unit);
  BytesSink sink(size, unit);
  world.ranks[1]->receive(0, tag, sink, 11);
  world.ranks[0]->send(1, tag, source, 22);
  ASSERT_TRUE(world.turn_until(
      [&] { return world.count(0, Kind::kSent) == 1 && world.count(1, Kind::kReceived) == 1; }));
  EXPECT_EQ(world.last(0).token, 22u);
  EXPECT_EQ(world.last(1).token, 11u);
  EXPECT_TRUE(sink.bytes == bytes);
}

TEST_P(TransportSuite, AMessageOfAnySizeArrivesUnchanged) {
  for (const size_t size :
       {0, 1, 2, 7, 8, 63, 64, 4097, (256 << 10) - 1, 256 << 10, (256 << 10) + 1, (3 << 20) + 5}) {
    World world(GetParam(), 2);
    exchange_one(world, size, 1, {0, 1, 2, 3});
  }
}

TEST_P(TransportSuite, AMessageBringsItsWeight) {
  World world(GetParam(), 2);
  ASSERT_TRUE(world.ranks[0]->carries_weights());
  BytesSource source(random_bytes(600000, 1), 1);
  BytesSink sink(600000, 1);
  source.weight = 0.3;
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, source, 2);
  ASSERT_TRUE(world.turn_until([&] { return world.count(1, Kind::kReceived) == 1; }));
  EXPECT_EQ(sink.weight, 0.3);
}

TEST_P(TransportSuite, UnitsOfTheCodecAreNeverCut) {
  World world(GetParam(), 2);
  exchange_one(world, 260 * 5000, 260, {});
}

TEST_P(TransportSuite, RoomMayBeAnnouncedBeforeOrAfterTheSend) {
  World world(GetParam(), 2);
  BytesSource source(random_bytes(100000, 3), 4);
  BytesSink sink(100000, 4);
  world.ranks[0]->send(1, {}, source, 1);
  for (int i = 0; i < 50; ++i) world.turn();
  EXPECT_EQ(world.ranks[0]->counters().payload_sent_bytes, 0u);
  world.ranks[1]->receive(0, {}, sink, 2);
  EXPECT_TRUE(world.turn_until([&] { return world.count(1, Kind::kReceived) == 1; }));
}

TEST_P(TransportSuite, TagsAreMatchedWhateverTheOrderOfPosting) {
  World world(GetParam(), 2);
  constexpr uint32_t kMessages = 20;
  std::vector<std::unique_ptr<BytesSource>> sources;
  std::vector<std::unique_ptr<BytesSink>> sinks;
  for (uint32_t i = 0; i < kMessages; ++i) {
    sources.push_back(std::make_unique<BytesSource>(random_bytes(1000 + i, i), 1));
    sinks.push_back(std::make_unique<BytesSink>(1000 + i, 1));
  }
  for (uint32_t i = 0; i < kMessages; ++i) {
    const uint32_t other = (i * 7 + 3) % kMessages;
    world.ranks[0]->send(1, {.segment = i}, *sources[i], i);
    world.ranks[1]->receive(0, {.segment = other}, *sinks[other], other);
  }
  ASSERT_TRUE(world.turn_until([&] { return world.count(1, Kind::kReceived) == kMessages; }));
  for (uint32_t i = 0; i < kMessages; ++i)
    EXPECT_TRUE(sinks[i]->bytes == random_bytes(1000 + i, i));
}

TEST_P(TransportSuite, AllPairsExchangeAtOnce) {
  constexpr int kSize = 5;
  World world(GetParam(), kSize);
  std::vector<std::unique_ptr<BytesSource>> sources;
  std::vector<std::unique_ptr<BytesSink>> sinks;
  for (int a = 0; a < kSize; ++a) {
    for (int b = 0; b < kSize; ++b) {
      if (a == b) continue;
      sources.push_back(std::make_unique<BytesSource>(random_bytes(700000, a * kSize + b), 4));
      sinks.push_back(std::make_unique<BytesSink>(700000, 4));
      world.ranks[a]->send(b, {}, *sources.back(), 0);
      world.ranks[b]->receive(a, {}, *sinks.back(), 0);
    }
  }
  ASSERT_TRUE(world.turn_until([&] {
    for (int rank = 0; rank < kSize; ++rank) {
      if (world.count(rank, Kind::kReceived) < kSize - 1) return false;
    }
    return true;
  }));
  size_t i = 0;
  for (int a = 0; a < kSize; ++a) {
    for (int b = 0; b < kSize; ++b) {
      if (a == b) continue;
      EXPECT_TRUE(sinks[i++]->bytes == random_bytes(700000, a * kSize + b));
    }
  }
  const TransportCounters counters = world.ranks[0]->counters();
  EXPECT_EQ(counters.payload_sent_bytes, 4u * 700000);
  EXPECT_EQ(counters.payload_received_bytes, 4u * 700000);
  EXPECT_EQ(counters.messages_sent, 4u);
  EXPECT_EQ(counters.messages_received, 4u);
}

TEST_P(TransportSuite, AFarewellComesAfterTheMessagesUnderWay) {
  World world(GetParam(), 2);
  BytesSource source(random_bytes(900000, 5), 1);
  BytesSink sink(900000, 1);
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, source, 1);
  world.turn_until([&] { return world.ranks[0]->counters().payload_sent_bytes > 0; });
  world.ranks[0]->say_farewell({});
  ASSERT_TRUE(world.turn_until([&] { return world.count(1, Kind::kPeerLeft) == 1; }));
  EXPECT_EQ(world.events[1].front().kind, Kind::kReceived);
  EXPECT_FALSE(world.last(1).farewell.failed);
  EXPECT_TRUE(world.turn_until([&] { return world.ranks[0]->drained(); }));
  world.ranks[0].reset();
  for (int i = 0; i < 20; ++i) world.turn();
  EXPECT_EQ(world.count(1, Kind::kPeerLost), 0u);
}

TEST_P(TransportSuite, AFailureIsToldWithItsFirstCause) {
  World world(GetParam(), 3);
  world.ranks[1]->say_farewell({true, 2, "rank 2: segment 3 burnt"});
  ASSERT_TRUE(world.turn_until([&] {
    return world.count(0, Kind::kPeerLeft) == 1 && world.count(2, Kind::kPeerLeft) == 1;
  }));
  EXPECT_TRUE(world.last(0).farewell.failed);
  EXPECT_EQ(world.last(0).peer, 1);
  EXPECT_EQ(world.last(0).farewell.origin, 2);
  EXPECT_EQ(world.last(0).farewell.cause, "rank 2: segment 3 burnt");
}

TEST_P(TransportSuite, APeerThatVanishesIsLostByName) {
  World world(GetParam(), 3);
  for (int i = 0; i < 5; ++i) world.turn();
  world.ranks[2].reset();
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kPeerLost) == 1; }));
  EXPECT_EQ(world.last(0).peer, 2);
  EXPECT_NE(world.last(0).farewell.cause.find("rank 2"), std::string::npos);
  EXPECT_EQ(world.count(1, Kind::kPeerLost), 1u);
}

TEST_P(TransportSuite, SilenceBeyondTheTimeoutLosesAPeerAndHeartbeatsPreventIt) {
  World world(GetParam(), 2, 10.0);
  world.turn();
  for (int i = 0; i < 40; ++i) {
    world.clock.advance(1.0);
    for (int turns = 0; turns < 8; ++turns) world.turn();
  }
  EXPECT_TRUE(world.events[0].empty());
  for (int i = 0; i < 12; ++i) {
    world.clock.advance(1.0);
    world.ranks[0]->progress(world.clock.now_s(), world.events[0]);
  }
  ASSERT_EQ(world.count(0, Kind::kPeerLost), 1u);
  EXPECT_NE(world.last(0).farewell.cause.find("no sign of life"), std::string::npos);
}

TEST_P(TransportSuite, AProcessThatWasStoppedItselfBlamesNobody) {
  World world(GetParam(), 2, 10.0);
  world.turn();
  world.clock.advance(1000.0);
  for (int i = 0; i < 10; ++i) world.turn();
  EXPECT_TRUE(world.events[0].empty());
  EXPECT_TRUE(world.events[1].empty());
}

TEST_P(TransportSuite, WhatComesForAForgottenPlanIsDiscarded) {
  World world(GetParam(), 2);
  BytesSource dropped(random_bytes(600000, 1), 1);
  BytesSource kept(random_bytes(5000, 2), 1);
  BytesSink sink_of_dropped(600000, 1);
  BytesSink sink(5000, 1);
  world.ranks[1]->receive(0, {.plan = 0}, sink_of_dropped, 1);
  world.ranks[0]->send(1, {.plan = 0}, dropped, 1);
  world.turn_until([&] { return world.ranks[0]->counters().payload_sent_bytes > 0; });
  world.ranks[1]->forget_plan(0);
  world.ranks[1]->receive(0, {.plan = 1}, sink, 2);
  world.ranks[0]->send(1, {.plan = 1}, kept, 2);
  ASSERT_TRUE(world.turn_until([&] { return world.count(1, Kind::kReceived) == 1; }));
  EXPECT_TRUE(sink.bytes == random_bytes(5000, 2));
  EXPECT_EQ(world.count(1, Kind::kPeerLost), 0u);
}

TEST_P(TransportSuite, PlansOfDifferentSizeAreAnErrorThatNamesBoth) {
  World world(GetParam(), 2);
  BytesSource source(random_bytes(100, 1), 1);
  BytesSink sink(104, 1);
  world.ranks[1]->receive(0, {.plan = 1, .segment = 2, .round = 3}, sink, 1);
  world.ranks[0]->send(1, {.plan = 1, .segment = 2, .round = 3}, source, 1);
  try {
    world.turn_until([] { return false; });
    FAIL() << "expected InvalidArgument";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(),
                 "plan 1, round 3, segment 2, phase 0: rank 1 has room for 104 bytes, this rank "
                 "sends 100; the plans or calls differ");
  }
}

TEST(StreamTransport, GarbageInAStreamLosesThatPeerAlone) {
  World world(Medium::kLocal, 3);
  world.turn();
  world.network().inject(1, 0, std::vector<unsigned char>(64, 0x5A));
  ASSERT_TRUE(world.turn_until([&] { return world.count(0, Kind::kPeerLost) == 1; }));
  EXPECT_EQ(world.last(0).peer, 1);
  EXPECT_NE(world.last(0).farewell.cause.find("garbled stream"), std::string::npos);
}

// As a GPU's source whose copy to the host is still under way.
class UnreadySource final : public MessageSource {
 public:
  size_t num_bytes() const override { return 8; }
  size_t produce(std::span<std::byte> out) override {
    if (!ready) return 0;
    std::fill_n(out.begin(), 8, std::byte{7});
    return 8;
  }
  bool ready = false;
};

TEST_P(TransportSuite, ASourceThatIsNotReadyLetsTheProgressThreadSleep) {
  World world(GetParam(), 2);
  UnreadySource source;
  BytesSink sink(8, 8);
  world.ranks[1]->receive(0, {}, sink, 1);
  world.ranks[0]->send(1, {}, source, 1);
  const auto may_sleep = [&] {
    std::vector<PollItem> items;
    double max_sleep_s = 1.0;
    return world.ranks[0]->prepare_to_sleep(world.clock.now_s(), items, max_sleep_s);
  };
  for (int i = 0; i < 100; ++i) world.turn();
  EXPECT_TRUE(may_sleep());
  source.ready = true;
  EXPECT_TRUE(world.turn_until([&] { return world.count(1, Kind::kReceived) == 1; }));
}

TEST_P(TransportSuite, NothingIsPendingOnceAllHasMoved) {
  World world(GetParam(), 2);
  exchange_one(world, 1000, 1, {});
  world.turn_until([&] {
    std::vector<PollItem> items;
    double max_sleep_s = 1.0;
    return world.ranks[0]->prepare_to_sleep(world.clock.now_s(), items, max_sleep_s) &&
           world.ranks[1]->prepare_to_sleep(world.clock.now_s(), items, max_sleep_s);
  });
  std::vector<PollItem> items;
  double max_sleep_s = 1000.0;
  EXPECT_TRUE(world.ranks[0]->prepare_to_sleep(world.clock.now_s(), items, max_sleep_s));
  EXPECT_FALSE(items.empty());
  EXPECT_LE(max_sleep_s, 30.0 / 4);
}

}  // namespace
}  // namespace crossover::testing
