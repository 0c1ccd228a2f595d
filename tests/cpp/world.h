// Ranks of one process for tests: transports over every kind of pipe, and a clock that is set.
#pragma once

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "core/pipe.h"
#include "core/stream_transport.h"
#include "host/local_pipe.h"
#include "host/shared_memory_pipe.h"
#include "host/tcp_pipe.h"

namespace crossover::testing {

class ManualClock final : public Clock {
 public:
  double now_s() const override { return now_s_; }
  void advance(double seconds) { now_s_ += seconds; }

 private:
  double now_s_ = 100.0;
};

/// Wakes and sleeps of an engine that a test turns by hand: nothing to do.
class NullPoller final : public Poller {
 public:
  void wait(std::span<const PollItem>, double) override {}
  void wake() noexcept override {}
};

enum class Medium { kLocal, kLocalWithFaults, kShared, kSocket };

inline std::string medium_name(Medium medium) {
  switch (medium) {
    case Medium::kLocal:
      return "Local";
    case Medium::kLocalWithFaults:
      return "LocalWithFaults";
    case Medium::kShared:
      return "SharedMemory";
    case Medium::kSocket:
      return "Socket";
  }
  return "Unknown";
}

using Pipes = std::vector<std::unique_ptr<Pipe>>;

/// All pipes among `size` ranks; `network` is set for the local media only.
struct Fabric {
  std::unique_ptr<LocalNetwork> network;
  std::vector<Pipes> pipes;
};

inline void connect(Medium medium, int a, int b, std::vector<Pipes>& pipes) {
  const std::string to_a = "rank " + std::to_string(a);
  const std::string to_b = "rank " + std::to_string(b);
  if (medium == Medium::kSocket) {
    int ends[2];
    check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
    pipes[a][b] = tcp_pipe(UniqueFd(ends[0]), to_b);
    pipes[b][a] = tcp_pipe(UniqueFd(ends[1]), to_a);
    return;
  }
  SharedMemoryChannel mine = create_shared_memory_channel();
  const auto copy = [](const UniqueFd& fd) { return UniqueFd(dup(fd.get())); };
  SharedMemoryChannel theirs{copy(mine.memory), copy(mine.wake_0), copy(mine.wake_1)};
  const auto self = [] { return UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0))); };
  pipes[a][b] = shared_memory_pipe(std::move(mine), 0, self(), to_b);
  pipes[b][a] = shared_memory_pipe(std::move(theirs), 1, self(), to_a);
}

inline Fabric make_fabric(Medium medium, int size, uint64_t seed = 1) {
  Fabric fabric;
  if (medium == Medium::kLocal || medium == Medium::kLocalWithFaults) {
    LocalFaults faults;
    if (medium == Medium::kLocalWithFaults) {
      faults = {.seed = seed, .delay_probability = 0.5, .max_fill_bytes = 4096 + 8};
    }
    fabric.network = std::make_unique<LocalNetwork>(size, kDefaultRingBytes, faults);
    for (int rank = 0; rank < size; ++rank) {
      fabric.pipes.push_back(fabric.network->take_pipes(rank));
    }
    return fabric;
  }
  for (int rank = 0; rank < size; ++rank) fabric.pipes.emplace_back(size);
  for (int a = 0; a < size; ++a) {
    for (int b = a + 1; b < size; ++b) connect(medium, a, b, fabric.pipes);
  }
  return fabric;
}

inline StreamConfig stream_config(int rank, int size, double timeout_s = 30.0) {
  return {rank, size, timeout_s, 0, 1000u + static_cast<uint64_t>(rank)};
}

}  // namespace crossover::testing
