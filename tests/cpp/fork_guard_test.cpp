#include "host/fork_guard.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <atomic>
#include <cerrno>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "child_process.h"
#include "host/event_fd.h"
#include "host/mapped_memory.h"
#include "host/system_call.h"
#include "host/unique_fd.h"

namespace crossover::testing {
namespace {

bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1 || errno != EBADF; }

TEST(ForkGuard, GuardedDescriptorsAreClosedInTheChildAndOpenInTheParent) {
  const EventFd guarded;
  const int fd = guarded.get();
  ChildProcess child([&] { return is_open(fd) || guarded.get() != -1 ? 1 : 0; });
  EXPECT_EQ(child.exit_code(), 0);
  EXPECT_TRUE(is_open(fd));
  EXPECT_EQ(guarded.get(), fd);
}

TEST(ForkGuard, AMovedDescriptorStaysGuarded) {
  UniqueFd first(checked(::dup(0), "dup"));
  const int fd = first.get();
  const UniqueFd second = std::move(first);
  EXPECT_FALSE(first);  // NOLINT(bugprone-use-after-move): empty by contract
  ChildProcess child([&] { return is_open(fd) ? 1 : 0; });
  EXPECT_EQ(child.exit_code(), 0);
}

TEST(ForkGuard, AClosedDescriptorIsNoLongerClosedInChildren) {
  int fd = -1;
  {
    const EventFd guarded;
    fd = guarded.get();
  }
  EXPECT_FALSE(is_open(fd));
  ASSERT_EQ(::dup2(0, fd), fd);
  ChildProcess child([&] { return is_open(fd) ? 0 : 1; });
  EXPECT_EQ(child.exit_code(), 0);
  ::close(fd);
}

TEST(ForkGuard, AParentsDescriptorClosesNothingInTheChild) {
  auto guarded = std::make_unique<EventFd>();
  const int fd = guarded->get();
  ChildProcess child([&] {
    if (::dup2(0, fd) != fd) return 1;
    guarded.reset();
    return is_open(fd) ? 0 : 2;
  });
  EXPECT_EQ(child.exit_code(), 0);
}

TEST(ForkGuard, AChildsOwnDescriptorsAreItsOwn) {
  const EventFd parents;
  ChildProcess child([&] {
    std::optional<EventFd> own(std::in_place);
    const int fd = own->get();
    if (!is_open(fd)) return 1;
    own.reset();
    return is_open(fd) ? 2 : 0;
  });
  EXPECT_EQ(child.exit_code(), 0);
}

TEST(ForkGuard, ThePeerSeesTheEndThoughAForkedChildLivesOn) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  UniqueFd ours(ends[0]);
  const UniqueFd peers(ends[1]);
  const Gate forked;
  ChildProcess child([&] {
    forked.open();
    ::pause();
    return 0;
  });
  forked.pass();
  ours.reset();
  char byte = 0;
  EXPECT_EQ(::recv(peers.get(), &byte, 1, 0), 0);
  EXPECT_EQ(::waitpid(child.id(), nullptr, WNOHANG), 0) << "the child lives";
}

TEST(ForkGuard, ChildActionsRunInEveryChildUntilRemoved) {
  int runs = 0;
  const int id = fork_guard::add_child_action([&runs] { ++runs; });
  EXPECT_EQ(ChildProcess([&] { return runs; }).exit_code(), 1);
  EXPECT_EQ(
      ChildProcess([&] { return ChildProcess([&] { return runs; }).exit_code(); }).exit_code(), 2);
  EXPECT_EQ(runs, 0);
  fork_guard::remove_child_action(id);
  EXPECT_EQ(ChildProcess([&] { return runs; }).exit_code(), 0);
}

TEST(ForkGuard, TheGenerationCountsForks) {
  const uint64_t before = fork_guard::generation();
  ChildProcess child([&] { return fork_guard::generation() == before + 1 ? 0 : 1; });
  EXPECT_EQ(child.exit_code(), 0);
  EXPECT_EQ(fork_guard::generation(), before);
}

TEST(ForkGuard, MappedMemoryIsAbsentInTheChild) {
  auto ring =
      std::make_unique<MappedMemory>(create_memory_file(page_bytes()).get(), 0, page_bytes(), 2);
  std::byte* const at = ring->data();
  ChildProcess child([&] {
    if (ring->accessible() || ::msync(at, page_bytes(), MS_ASYNC) == 0) return 1;
    void* const own = ::mmap(at, page_bytes(), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (own != at) return 2;
    ring.reset();
    return ::msync(at, page_bytes(), MS_ASYNC) == 0 ? 0 : 3;
  });
  EXPECT_EQ(child.exit_code(), 0);
  EXPECT_TRUE(ring->accessible());
}

TEST(ForkGuard, ForkingWhileOtherThreadsOpenAndCloseNeverHangs) {
  std::atomic<bool> stop = false;
  std::vector<std::jthread> threads;
  for (int k = 0; k < 3; ++k) {
    threads.emplace_back([&] {
      while (!stop) {
        const EventFd first;
        const EventFd second;
        const int id = fork_guard::add_child_action([] {});
        fork_guard::remove_child_action(id);
      }
    });
  }
  for (int k = 0; k < 50; ++k) {
    ChildProcess child([] {
      const EventFd own;
      return is_open(own.get()) ? 0 : 1;
    });
    EXPECT_EQ(child.exit_code(), 0);
  }
  stop = true;
}

}  // namespace
}  // namespace crossover::testing
