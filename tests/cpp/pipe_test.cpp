// The conformance suite that every kind of pipe passes.
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>

#include "core/error.h"
#include "pipe_pair.h"

namespace crossover::testing {
namespace {

struct Kind {
  const char* name;
  PipePair (*make)();
  bool is_network = false;  // drained() wakes nobody there, and follows the acknowledgement
};

class PipeTest : public ::testing::TestWithParam<Kind> {
 protected:
  /// Fills until `count` bytes are in b's read window.
  void fill_until(size_t count) {
    while (b_.read_window().size() < count) {
      ASSERT_FALSE(b_.ended());
      const bool moved = a_.flush() | b_.fill();
      if (!moved) sleep_on(b_, *poller_);
    }
  }
  /// Moves and reads all that has been written.
  void read_all() {
    while (reader_.position() < writer_.position()) {
      a_.flush();
      b_.fill();
      reader_.read(SIZE_MAX);
    }
  }
  /// Writes until nothing moves any more.
  void write_until_full() {
    while (writer_.write(SIZE_MAX) > 0 || a_.flush()) {
    }
  }

  PipePair pair_ = GetParam().make();
  Pipe& a_ = *pair_.a;
  Pipe& b_ = *pair_.b;
  StreamWriter writer_{a_};
  StreamReader reader_{b_};
  std::unique_ptr<Poller> poller_ = system_poller();
};

/// Over a network nothing wakes a writer when its bytes are acknowledged.
class PipeWithinAHostTest : public PipeTest {};

constexpr Kind kTcp{"Tcp", loopback_pair, true};
constexpr Kind kUnixSocket{"UnixSocket", unix_pair, true};
constexpr Kind kSharedMemory{"SharedMemory", shared_memory_pair};
constexpr Kind kLocal{"Local", local_pair};
constexpr Kind kFaultyLocal{"FaultyLocal", faulty_local_pair};

void PrintTo(const Kind& kind, std::ostream* out) { *out << kind.name; }

const auto name_of = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(All, PipeTest,
                         ::testing::Values(kTcp, kUnixSocket, kSharedMemory, kLocal, kFaultyLocal),
                         name_of);
INSTANTIATE_TEST_SUITE_P(All, PipeWithinAHostTest,
                         ::testing::Values(kSharedMemory, kLocal, kFaultyLocal), name_of);

TEST_P(PipeTest, RandomWritesAndReadsGiveTheStreamByteForByte) {
  std::mt19937 random(1);
  constexpr uint64_t kBytes = 8 << 20;
  while (reader_.position() < kBytes) {
    writer_.write(std::min<uint64_t>(random() % 200'000, kBytes - writer_.position()));
    b_.fill();
    reader_.read(random() % 200'000);
  }
  EXPECT_EQ(reader_.wrong(), 0u);
  b_.fill();
  EXPECT_TRUE(b_.read_window().empty());
}

TEST_P(PipeTest, WindowsAreAlignedToEightBytesIfAllCountsAre) {
  std::mt19937 random(2);
  const auto misalignment = [](const std::byte* at) { return reinterpret_cast<uintptr_t>(at) % 8; };
  while (reader_.position() < (4 << 20)) {
    EXPECT_EQ(misalignment(a_.write_window().data()), 0u);
    writer_.write(random() % 20'000 * 8);
    b_.fill();
    ASSERT_EQ(misalignment(b_.read_window().data()), 0u);
    const size_t whole = b_.read_window().size() & ~size_t{7};
    reader_.read(std::min<size_t>(random() % 20'000 * 8, whole));
  }
  EXPECT_EQ(reader_.wrong(), 0u);
}

TEST_P(PipeTest, AnEmptyPipeOffersItsWholeCapacity) {
  EXPECT_GE(a_.min_capacity(), (size_t{256} << 10) + 64);
  EXPECT_EQ(a_.write_window().size(), a_.min_capacity());
  EXPECT_FALSE(a_.flush());
}

TEST_P(PipeTest, AReadWindowHoldsTheWholeCapacityAtOnce) {
  writer_.write_all(1000);
  fill_until(1000);
  reader_.read(1000);
  while (writer_.position() < 1000 + a_.min_capacity()) {
    writer_.write(1000 + a_.min_capacity() - writer_.position());
    b_.fill();
  }
  fill_until(b_.min_capacity());
  EXPECT_EQ(reader_.read(SIZE_MAX), b_.min_capacity());
  EXPECT_EQ(reader_.wrong(), 0u);
}

TEST_P(PipeTest, AWriteWindowIsEmptyOrAtLeastAQuarterOfTheCapacity) {
  std::mt19937 random(3);
  for (int k = 0; k < 300; ++k) {
    const size_t room = a_.write_window().size();
    EXPECT_TRUE(room == 0 || room >= a_.min_capacity() / 4) << room;
    writer_.write(random() % 300'000);
    b_.fill();
    reader_.read(random() % 200'000);
  }
}

TEST_P(PipeTest, AFullPipeOffersNoRoomUntilTheReaderReads) {
  write_until_full();
  EXPECT_TRUE(a_.write_window().empty());
  const uint64_t full = writer_.position();
  read_all();
  while (writer_.write(1000) == 0) sleep_on(a_, *poller_, true);
  read_all();
  EXPECT_EQ(reader_.position(), full + 1000);
  EXPECT_EQ(reader_.wrong(), 0u);
}

TEST_P(PipeTest, NothingArrivesBeforeAFlush) {
  a_.commit(a_.write_window().subspan(0, 64).size());
  EXPECT_FALSE(b_.fill());
  EXPECT_TRUE(a_.flush());
  fill_until(64);
}

TEST_P(PipeTest, CommittingMoreThanTheWindowIsAnError) {
  EXPECT_THROW(a_.commit(a_.min_capacity() + 1), std::logic_error);
  EXPECT_THROW(b_.release(1), std::logic_error);
}

TEST_P(PipeTest, TheStreamEndsAfterItsLastByte) {
  writer_.write_all(100'000);
  a_.finish_writing();
  EXPECT_TRUE(a_.write_window().empty());
  EXPECT_FALSE(b_.ended());
  reader_.read_to_end(*poller_);
  EXPECT_EQ(reader_.position(), 100'000u);
  EXPECT_EQ(reader_.wrong(), 0u);
  EXPECT_EQ(b_.end_reason(), "connection closed");
  EXPECT_FALSE(b_.fill());
}

TEST_P(PipeTest, TheFillThatFindsTheEndReturnsTrueAndLaterOnesDoNot) {
  a_.finish_writing();
  bool found = false;
  while (!b_.ended()) {
    sleep_on(b_, *poller_);
    found = b_.fill();
  }
  EXPECT_TRUE(found);
  EXPECT_FALSE(b_.fill());
}

TEST_P(PipeTest, BytesCommittedBeforeFinishWritingArriveThoughThePipeIsFull) {
  write_until_full();
  a_.finish_writing();
  while (!b_.ended() || !b_.read_window().empty()) {
    a_.flush();
    b_.fill();
    reader_.read(SIZE_MAX);
  }
  EXPECT_EQ(reader_.position(), writer_.position());
  EXPECT_EQ(reader_.wrong(), 0u);
}

TEST_P(PipeTest, WritingGoesOnAfterTheOtherDirectionHasEnded) {
  b_.finish_writing();
  StreamReader(a_).read_to_end(*poller_);
  EXPECT_TRUE(a_.ended());
  writer_.write_all(100'000);
  a_.finish_writing();
  reader_.read_to_end(*poller_);
  EXPECT_EQ(reader_.position(), 100'000u);
  EXPECT_EQ(reader_.wrong(), 0u);
}

TEST_P(PipeTest, DestroyingOneEndEndsTheOtherAfterWhatWasSent) {
  writer_.write_all(100'000);
  pair_.a.reset();
  reader_.read_to_end(*poller_);
  EXPECT_EQ(reader_.position(), 100'000u);
  EXPECT_EQ(reader_.wrong(), 0u);
  EXPECT_EQ(b_.end_reason(), "connection closed");
}

TEST_P(PipeTest, AWriterWhosePeerIsGoneIsDrainedAndHasNoRoom) {
  write_until_full();
  pair_.b.reset();
  while (!a_.ended()) {
    a_.flush();
    if (!a_.fill()) sleep_on(a_, *poller_);
  }
  a_.flush();
  EXPECT_TRUE(a_.drained());
  EXPECT_TRUE(a_.write_window().empty());
  EXPECT_FALSE(a_.end_reason().empty());
  std::vector<PollItem> items;
  EXPECT_TRUE(a_.prepare_to_sleep(true, items));
  const auto start = std::chrono::steady_clock::now();
  poller_->wait(items, 0.002);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(2))
      << "a dead peer keeps nobody awake";
}

TEST_P(PipeTest, PrepareToSleepRefusesUntilFillHasBroughtWhatThereIs) {
  writer_.write_all(640);
  std::vector<PollItem> items;
  while (b_.prepare_to_sleep(false, items)) {
    poller_->wait(items, kLostWakeUpS);
    items.clear();
  }
  fill_until(640);
  EXPECT_TRUE(b_.prepare_to_sleep(false, items)) << "640 bytes are known and no news";
  EXPECT_FALSE(items.empty());
}

TEST_P(PipeTest, PrepareToSleepRefusesUntilTheEndIsSeen) {
  a_.finish_writing();
  std::vector<PollItem> items;
  while (b_.prepare_to_sleep(false, items)) {
    poller_->wait(items, kLostWakeUpS);
    items.clear();
  }
  while (!b_.ended()) b_.fill();
  EXPECT_TRUE(b_.prepare_to_sleep(false, items));
}

TEST_P(PipeTest, PrepareToSleepRefusesIfWantedRoomIsThere) {
  std::vector<PollItem> items;
  EXPECT_FALSE(a_.prepare_to_sleep(true, items));
  EXPECT_TRUE(a_.prepare_to_sleep(false, items));
  write_until_full();
  EXPECT_TRUE(a_.prepare_to_sleep(true, items));
}

TEST_P(PipeTest, WhatIsWrittenIsDrainedOnceThePeerHasReadIt) {
  EXPECT_TRUE(a_.drained());
  write_until_full();
  EXPECT_FALSE(a_.drained());
  read_all();
  // An acknowledgement may take its time.
  while (GetParam().is_network && !a_.drained()) poller_->wait({}, 0.001);
  EXPECT_TRUE(a_.drained());
}

TEST_P(PipeWithinAHostTest, AFinishedWriterIsWokenWhenItIsDrained) {
  writer_.write_all(1000);
  a_.finish_writing();
  std::jthread reader([this] { reader_.read_to_end(*system_poller()); });
  while (!a_.drained()) sleep_on(a_, *poller_);
  std::vector<PollItem> items;
  a_.prepare_to_sleep(false, items);  // may still tell the news
  EXPECT_TRUE(a_.prepare_to_sleep(false, items));
}

TEST_P(PipeTest, DescribesItself) { EXPECT_FALSE(a_.describe().empty()); }

/// Sends and receives `count` bytes, sleeping whenever nothing moves.
void exchange(Pipe& pipe, uint64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  StreamWriter writer(pipe);
  StreamReader reader(pipe);
  const std::unique_ptr<Poller> poller = system_poller();
  while (reader.position() < count || writer.position() < count) {
    bool moved = writer.write(std::min(random() % 100'000, count - writer.position())) > 0;
    moved |= pipe.fill();
    moved |= reader.read(1 + random() % 100'000) > 0;
    if (!moved) sleep_on(pipe, *poller, writer.position() < count);
  }
  EXPECT_EQ(reader.wrong(), 0u);
  while (!pipe.drained()) {  // over a network nothing wakes this loop
    pipe.flush();
    poller->wait({}, 0.001);
  }
}

TEST_P(PipeTest, TwoSleepingThreadsLoseNoWakeUp) {
  const auto start = std::chrono::steady_clock::now();
  {
    std::jthread other([this] { exchange(b_, 16 << 20, 4); });
    exchange(a_, 16 << 20, 5);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count(), kLostWakeUpS);
}

TEST_P(PipeTest, ASleepingThreadIsWokenForEachOfManySmallMessages) {
  constexpr int kRounds = 2000;
  const auto start = std::chrono::steady_clock::now();
  std::jthread echo([this] {
    const std::unique_ptr<Poller> poller = system_poller();
    StreamWriter writer(b_);
    for (int k = 1; k <= kRounds; ++k) {
      reader_.read_until(64 * k, *poller);
      writer.write_all(64);
    }
  });
  StreamReader echoed(a_);
  for (int k = 1; k <= kRounds; ++k) {
    writer_.write_all(64);
    echoed.read_until(64 * k, *poller_);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  EXPECT_LT(elapsed.count(), kLostWakeUpS);
  EXPECT_EQ(echoed.wrong(), 0u);
}

TEST_P(PipeTest, ASleepingThreadIsWokenByTheEnd) {
  std::jthread sleeper([this] { reader_.read_to_end(*system_poller()); });
  writer_.write_all(64);
  a_.finish_writing();
  sleeper.join();
  EXPECT_TRUE(b_.ended());
  EXPECT_EQ(reader_.position(), 64u);
}

}  // namespace
}  // namespace crossover::testing
