// Shared memory between processes, and against a hostile peer; the common contract is in
// pipe_test.cpp.
#include "host/shared_memory_pipe.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

#include "child_process.h"
#include "core/error.h"
#include "host/mapped_memory.h"
#include "host/shared_memory_channel.h"
#include "pipe_pair.h"

namespace crossover::testing {
namespace {

/// Copies of a channel's descriptors that a child keeps.
struct PlainChannel {
  explicit PlainChannel(const SharedMemoryChannel& channel)
      : memory(::dup(channel.memory.get())),
        wake_0(::dup(channel.wake_0.get())),
        wake_1(::dup(channel.wake_1.get())) {}
  ~PlainChannel() {
    for (int fd : {memory, wake_0, wake_1}) ::close(fd);
  }
  std::unique_ptr<Pipe> attach_in_child() const {
    return shared_memory_pipe({UniqueFd(memory), UniqueFd(wake_0), UniqueFd(wake_1)}, 1,
                              pidfd_of(::getppid()), "parent");
  }
  int memory, wake_0, wake_1;
};

class SharedMemoryProcesses : public ::testing::Test {
 protected:
  std::unique_ptr<Pipe> attach_to(const ChildProcess& child) {
    const std::string label = "process " + std::to_string(child.id());
    return shared_memory_pipe(std::move(channel_), 0, pidfd_of(child.id()), label);
  }
  static std::string ended(pid_t child) { return "process " + std::to_string(child) + " ended"; }

  SharedMemoryChannel channel_ = create_shared_memory_channel();
  PlainChannel plain_{channel_};
  std::unique_ptr<Poller> poller_ = system_poller();
};

TEST_F(SharedMemoryProcesses, EchoTheStreamBackThroughAnotherProcess) {
  constexpr uint64_t kBytes = 8 << 20;
  ChildProcess child([this] {
    const auto pipe = plain_.attach_in_child();
    const auto poller = system_poller();
    StreamReader reader(*pipe);
    StreamWriter writer(*pipe);
    while (writer.position() < kBytes) {
      const bool moved = pipe->fill() | (reader.read(SIZE_MAX) > 0);
      const bool owes = writer.position() < reader.position();
      const bool wrote = writer.write(reader.position() - writer.position()) > 0;
      if (!moved && !wrote) sleep_on(*pipe, *poller, owes);
    }
    pipe->finish_writing();
    while (!pipe->drained()) sleep_on(*pipe, *poller);
    return reader.wrong() == 0 ? 0 : 1;
  });
  const auto pipe = attach_to(child);
  EXPECT_EQ(pipe->describe(), "shared memory with process " + std::to_string(child.id()));
  StreamWriter writer(*pipe);
  StreamReader reader(*pipe);
  while (!pipe->ended()) {
    const uint64_t left = kBytes - writer.position();
    const bool moved = (writer.write(left) > 0) | pipe->fill() | (reader.read(SIZE_MAX) > 0);
    if (!moved) sleep_on(*pipe, *poller_, writer.position() < kBytes);
  }
  reader.read(SIZE_MAX);
  EXPECT_EQ(reader.position(), kBytes);
  EXPECT_EQ(reader.wrong(), 0u);
  EXPECT_EQ(child.exit_code(), 0);
}

TEST_F(SharedMemoryProcesses, WhatAKilledProcessHadWrittenIsReadBeforeTheEnd) {
  const Gate written;
  ChildProcess child([&] {
    const auto pipe = plain_.attach_in_child();
    StreamWriter(*pipe).write_all(100'000);
    written.open();
    ::pause();
    return 0;
  });
  const pid_t id = child.id();
  const auto pipe = attach_to(child);
  written.pass();
  child.kill();
  child.wait();
  StreamReader reader(*pipe);
  reader.read_to_end(*poller_);
  EXPECT_EQ(reader.position(), 100'000u);
  EXPECT_EQ(reader.wrong(), 0u);
  EXPECT_EQ(pipe->end_reason(), ended(id));
  EXPECT_TRUE(pipe->drained());
  EXPECT_TRUE(pipe->write_window().empty());
}

TEST_F(SharedMemoryProcesses, TheEndOfAProcessWakesASleeper) {
  ChildProcess child([] { return ::pause(); });
  const pid_t id = child.id();
  const auto pipe = attach_to(child);
  pipe->fill();
  std::vector<PollItem> items;
  ASSERT_TRUE(pipe->prepare_to_sleep(false, items));
  child.kill();
  poller_->wait(items, kLostWakeUpS);
  pipe->fill();
  EXPECT_TRUE(pipe->ended());
  EXPECT_EQ(pipe->end_reason(), ended(id));
  items.clear();
  EXPECT_TRUE(pipe->prepare_to_sleep(true, items));
  EXPECT_TRUE(items.empty());
}

TEST_F(SharedMemoryProcesses, TheEndOfAProcessIsNoticedWithoutASleep) {
  ChildProcess child([] { return 0; });
  const auto pipe = attach_to(child);
  child.wait();
  for (int k = 0; k < 1000 && !pipe->ended(); ++k) pipe->fill();
  EXPECT_TRUE(pipe->ended());
}

// ---------------------------------------------------------------------------------------------

TEST(SharedMemoryChannel, RefusesRingsThatAreNoPowerOfTwo) {
  EXPECT_THROW(create_shared_memory_channel(100'000), InvalidArgument);
  EXPECT_THROW(create_shared_memory_channel(8), InvalidArgument);
}

TEST(SharedMemoryChannel, CannotBeResizedByEitherSide) {
  const SharedMemoryChannel channel = create_shared_memory_channel();
  EXPECT_NE(::ftruncate(channel.memory.get(), 0), 0);
  EXPECT_NE(::ftruncate(channel.memory.get(), 1 << 30), 0);
  EXPECT_NE(::fcntl(channel.memory.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
}

std::string refusal(UniqueFd memory) {
  SharedMemoryChannel channel = create_shared_memory_channel();
  channel.memory = std::move(memory);
  try {
    shared_memory_pipe(std::move(channel), 1, pidfd_of(::getpid()), "process 123");
  } catch (const TransportError& error) {
    return error.what();
  }
  return "";
}

TEST(SharedMemoryChannel, RefusesMemoryThatDoesNotLookLikeOurs) {
  UniqueFd unsealed(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), 3 * page_bytes()), 0);
  EXPECT_EQ(refusal(std::move(unsealed)),
            "process 123: the descriptor is no memory file sealed against shrinking");
  EXPECT_EQ(refusal(UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC))),
            "process 123: the descriptor is no memory file sealed against shrinking");
  for (const size_t pages : {1, 2, 4, 7}) {
    const std::string bytes = std::to_string(pages * page_bytes());
    EXPECT_EQ(
        refusal(create_memory_file(pages * page_bytes())),
        "process 123: a memory file of " + bytes + " bytes does not hold a page and two rings");
  }
  EXPECT_EQ(refusal(create_memory_file(3 * page_bytes())),
            "process 123: the memory does not begin with a channel's header");
}

TEST(SharedMemoryChannel, RefusesADescriptorThatIsNoProcess) {
  UniqueFd no_process(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_THROW(
      shared_memory_pipe(create_shared_memory_channel(), 0, std::move(no_process), "process 123"),
      TransportError);
}

// ---------------------------------------------------------------------------------------------

/// Uses a pipe every way there is; windows never leave the ring.
void use(Pipe& pipe) {
  for (int k = 0; k < 6; ++k) {
    const std::span<std::byte> room = pipe.write_window();
    ASSERT_LE(room.size(), pipe.min_capacity());
    const size_t count = std::min<size_t>(room.size(), 1500);
    std::fill_n(room.begin(), count, std::byte{1});
    pipe.commit(count);
    pipe.flush();
    pipe.fill();
    const std::span<const std::byte> window = pipe.read_window();
    ASSERT_LE(window.size(), pipe.min_capacity());
    EXPECT_EQ(std::count(window.begin(), window.end(), std::byte{7}), 0) << "not in the stream";
    pipe.release(window.size() / 2);
    std::vector<PollItem> items;
    pipe.prepare_to_sleep(true, items);
    static_cast<void>(pipe.drained());
  }
}

TEST(HostilePeer, WordsItScribblesOverNeverLeadOutOfTheRing) {
  const uint64_t values[] = {1, 5000, ~uint64_t{0}};
  for (size_t offset = 0; offset < sizeof(ControlPage); offset += 8) {
    for (const uint64_t value : values) {
      const SharedMemoryChannel channel = create_shared_memory_channel(page_bytes());
      const MappedMemory page(channel.memory.get(), 0, page_bytes());
      PipePair pair = ends_of(channel);
      use(*pair.a);
      use(*pair.b);
      std::memcpy(page.data() + offset, &value, sizeof(value));
      use(*pair.a);
      use(*pair.b);
      use(*pair.a);
    }
  }
}

class CorruptCounter : public ::testing::Test {
 protected:
  SharedSide& side(int number) {
    return reinterpret_cast<ControlPage*>(page_.data())->sides[number];
  }
  SharedMemoryChannel channel_ = create_shared_memory_channel();
  MappedMemory page_{channel_.memory.get(), 0, page_bytes()};
  PipePair pair_ = ends_of(channel_);
};

TEST_F(CorruptCounter, OfWrittenBytesEndsThePipeWithTheReason) {
  side(1).written_bytes = kDefaultRingBytes + 1;
  EXPECT_TRUE(pair_.a->fill()) << "the end is news";
  EXPECT_TRUE(pair_.a->ended());
  EXPECT_TRUE(pair_.a->read_window().empty());
  EXPECT_EQ(pair_.a->end_reason(),
            "shared memory is corrupt: the peer cannot have written 1048577 bytes");
  EXPECT_TRUE(pair_.a->write_window().empty());
  EXPECT_TRUE(pair_.a->drained());
}

TEST_F(CorruptCounter, OfWrittenBytesMayNotRunBackwards) {
  StreamWriter(*pair_.b).write_all(1000);
  EXPECT_TRUE(pair_.a->fill());
  side(1).written_bytes = 999;
  pair_.a->fill();
  EXPECT_TRUE(pair_.a->ended());
  EXPECT_EQ(pair_.a->read_window().size(), 1000u) << "what arrived before stays";
}

TEST_F(CorruptCounter, OfReadBytesEndsThePipeAfterWhatHadArrived) {
  StreamWriter(*pair_.b).write_all(1000);
  StreamWriter(*pair_.a).write_all(64);
  side(1).read_bytes = 65;
  EXPECT_TRUE(pair_.a->write_window().empty());
  EXPECT_TRUE(pair_.a->fill());
  EXPECT_TRUE(pair_.a->ended());
  EXPECT_EQ(pair_.a->read_window().size(), 1000u);
  EXPECT_EQ(pair_.a->end_reason(), "shared memory is corrupt: the peer cannot have read 65 bytes");
}

}  // namespace
}  // namespace crossover::testing
