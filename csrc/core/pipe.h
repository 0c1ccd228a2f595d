// An ordered, reliable stream of bytes to and from one peer; StreamTransport frames messages on it.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "core/poller.h"

namespace crossover {

/// Non-blocking; used by one thread. Writing and reading go through windows into the pipe's own
/// memory, so that packing and mixing need no copy of their own. A window is contiguous, and starts
/// at a multiple of 8 in memory as long as every commit and release was a multiple of 8.
///
/// The memory of a read window may be shared with the peer, who can change it at any time: copy a
/// header before checking it.
///
/// Right:  while (pipe.flush() | pipe.fill() | use_windows()) {}
///         if (pipe.prepare_to_sleep(...)) poller.wait(...);
///         then flush() and fill() again, whatever woke the poller.
/// Wrong:  to skip fill() and ended() after a wait: the wake-up stays pending and ends every wait.
class Pipe {
 public:
  virtual ~Pipe() = default;

  /// Contiguous room for bytes to be sent: empty, or at least min_capacity() / 4 bytes, and all of
  /// min_capacity() when nothing is under way. Stays valid until commit() or flush(). Empty for
  /// ever after finish_writing() and once nothing can reach the peer.
  virtual std::span<std::byte> write_window() = 0;
  /// The first `num_bytes` of the window are part of the stream.
  virtual void commit(size_t num_bytes) = 0;
  /// Moves committed bytes towards the peer. True if any moved.
  virtual bool flush() = 0;
  /// True when no committed byte is waited for any more: each has reached the peer's side
  /// (acknowledged, or read), or nothing can reach the peer. After finish_writing() a sleeper is
  /// woken when this becomes true, except over a network: there, ask again after a while.
  virtual bool drained() const = 0;
  /// Half-close: no more commits; the peer sees the end of the stream after the last byte.
  virtual void finish_writing() = 0;

  /// Brings what has arrived into the read window. True if it grew, or if ended() has become true.
  virtual bool fill() = 0;
  /// All arrived and unreleased bytes. At least min_capacity() bytes can be there at once. Stays
  /// valid until release(); fill() may make the next one longer, never move it.
  virtual std::span<const std::byte> read_window() = 0;
  /// Gives the first `num_bytes` of the read window back.
  virtual void release(size_t num_bytes) = 0;
  /// Most bytes that a read window can hold; a frame is never larger.
  virtual size_t min_capacity() const = 0;

  /// True once nothing more can arrive: orderly end, error or dead peer. Bytes that arrived before
  /// are still in the read window. Writing may go on after an orderly end of the peer's stream.
  virtual bool ended() const = 0;
  /// Why it ended, for messages: "connection closed", "reset by peer", "process 123 ended", ...
  virtual std::string end_reason() const = 0;

  /// Arms wake-ups and appends what to poll; `want_write` if something waits because write_window()
  /// was empty (committed bytes are waited for anyhow). False if fill() would bring bytes or the
  /// end, if there is room to write and it is wanted, or (once) if the pipe has become drained.
  /// Bytes that fill() has brought already do not count: an incomplete frame in the read window
  /// does not keep the caller awake.
  virtual bool prepare_to_sleep(bool want_write, std::vector<PollItem>& items) = 0;

  /// Whether it shares the host's network link with the other pipes that do.
  virtual bool crosses_network() const { return false; }
  /// Committed bytes that wait for that link; 0 if they wait for the peer or the network between.
  virtual size_t bytes_before_link() const { return 0; }

  /// "tcp rank 3 (10.0.0.2:4711)", "shared memory with process 123".
  virtual std::string describe() const = 0;
};

}  // namespace crossover
