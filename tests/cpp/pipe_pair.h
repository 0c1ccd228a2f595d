// Two connected ends of each kind of pipe, and a known stream to send through them.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/pipe.h"
#include "host/local_pipe.h"
#include "host/shared_memory_pipe.h"
#include "host/system_call.h"
#include "host/system_poller.h"
#include "host/tcp_pipe.h"

namespace crossover::testing {

/// Longer than anything here lasts; reached only when a wake-up is lost.
inline constexpr double kLostWakeUpS = 60.0;

struct PipePair {
  std::unique_ptr<Pipe> a;
  std::unique_ptr<Pipe> b;
};

inline UniqueFd pidfd_of(pid_t process) {
  return UniqueFd(checked(static_cast<int>(::syscall(SYS_pidfd_open, process, 0)), "pidfd_open"));
}

inline PipePair unix_pair() {
  int ends[2];
  checked(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), "socketpair");
  return {tcp_pipe(UniqueFd(ends[0]), "b"), tcp_pipe(UniqueFd(ends[1]), "a")};
}

inline std::pair<UniqueFd, UniqueFd> loopback_sockets() {
  UniqueFd listener(checked(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  checked(::bind(listener.get(), generic, size), "bind");
  checked(::listen(listener.get(), 1), "listen");
  checked(::getsockname(listener.get(), generic, &size), "getsockname");
  UniqueFd caller(checked(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
  checked(::connect(caller.get(), generic, size), "connect");
  UniqueFd answered(checked(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC), "accept"));
  return {std::move(caller), std::move(answered)};
}

inline PipePair loopback_pair() {
  auto [a, b] = loopback_sockets();
  return {tcp_pipe(std::move(a), "b"), tcp_pipe(std::move(b), "a")};
}

inline UniqueFd duplicate(const UniqueFd& fd) { return UniqueFd(checked(::dup(fd.get()), "dup")); }

inline SharedMemoryChannel duplicate(const SharedMemoryChannel& channel) {
  return {duplicate(channel.memory), duplicate(channel.wake_0), duplicate(channel.wake_1)};
}

/// Both ends in this process, which is its own peer.
inline PipePair ends_of(const SharedMemoryChannel& channel) {
  return {shared_memory_pipe(duplicate(channel), 0, pidfd_of(::getpid()), "b"),
          shared_memory_pipe(duplicate(channel), 1, pidfd_of(::getpid()), "a")};
}

inline PipePair shared_memory_pair() { return ends_of(create_shared_memory_channel()); }

inline PipePair ends_of(LocalNetwork& network) {
  auto of_0 = network.take_pipes(0);
  auto of_1 = network.take_pipes(1);
  return {std::move(of_0[1]), std::move(of_1[0])};
}

inline PipePair local_pair() {
  LocalNetwork network(2, kDefaultRingBytes, {});
  return ends_of(network);
}

inline PipePair faulty_local_pair() {
  LocalNetwork network(2, kDefaultRingBytes,
                       {.seed = 7, .delay_probability = 0.3, .max_fill_bytes = 5000});
  return ends_of(network);
}

/// Sleeps until the pipe has news: bytes, the end, or room if wanted.
inline void sleep_on(Pipe& pipe, Poller& poller, bool want_write = false) {
  std::vector<PollItem> items;
  if (pipe.prepare_to_sleep(want_write, items)) poller.wait(items, kLostWakeUpS);
}

/// The stream that all tests send, from `position` on, for the length of a ring.
inline const std::byte* stream_at(uint64_t position) {
  constexpr size_t kPeriod = 65'521;  // a prime: no ring wraps at a whole number of periods
  static const std::vector<std::byte> repeated = [] {
    std::mt19937 random(0);
    std::vector<std::byte> bytes(kPeriod + kDefaultRingBytes);
    for (size_t k = 0; k < bytes.size(); ++k) {
      bytes[k] = k < kPeriod ? static_cast<std::byte>(random()) : bytes[k - kPeriod];
    }
    return bytes;
  }();
  return repeated.data() + position % kPeriod;
}

class StreamWriter {
 public:
  explicit StreamWriter(Pipe& pipe) : pipe_(pipe) {}
  /// Writes and flushes at most `limit` bytes, as many as the window takes.
  size_t write(size_t limit) {
    const std::span<std::byte> window = pipe_.write_window();
    const size_t count = std::min(limit, window.size());
    if (count > 0) std::memcpy(window.data(), stream_at(position_), count);
    pipe_.commit(count);
    position_ += count;
    pipe_.flush();
    return count;
  }
  void write_all(size_t count) {
    for (size_t left = count; left > 0;) {
      const size_t written = write(left);
      ASSERT_GT(written, 0u) << "the pipe is full";
      left -= written;
    }
  }
  uint64_t position() const { return position_; }

 private:
  Pipe& pipe_;
  uint64_t position_ = 0;
};

class StreamReader {
 public:
  explicit StreamReader(Pipe& pipe) : pipe_(pipe) {}
  /// Checks and releases at most `limit` bytes of what has arrived.
  size_t read(size_t limit) {
    const std::span<const std::byte> window = pipe_.read_window();
    const size_t count = std::min(limit, window.size());
    if (count > 0) wrong_ += std::memcmp(window.data(), stream_at(position_), count) != 0;
    pipe_.release(count);
    position_ += count;
    return count;
  }
  /// Sleeps and reads until `count` bytes in all have been read or the pipe has ended.
  void read_until(uint64_t count, Poller& poller) {
    while (position_ < count) {
      if (pipe_.fill() || !pipe_.read_window().empty()) {
        read(count - position_);
      } else if (pipe_.ended()) {
        return;
      } else {
        sleep_on(pipe_, poller);
      }
    }
  }
  void read_to_end(Poller& poller) {
    while (!pipe_.ended() || !pipe_.read_window().empty()) {
      pipe_.fill();
      if (read(SIZE_MAX) == 0 && !pipe_.ended()) sleep_on(pipe_, poller);
    }
  }
  uint64_t position() const { return position_; }
  /// How many reads did not bring the stream's bytes.
  uint64_t wrong() const { return wrong_; }

 private:
  Pipe& pipe_;
  uint64_t position_ = 0;
  uint64_t wrong_ = 0;
};

}  // namespace crossover::testing
