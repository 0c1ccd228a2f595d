// An ordered, reliable stream of bytes to and from one peer; StreamTransport frames messages on it.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "core/poller.h"

namespace crossover {

/// Non-blocking; used by one thread. Writing and reading go through windows into the pipe's own
/// memory, so that packing and mixing need no copy of their own.
class Pipe {
 public:
  virtual ~Pipe() = default;

  /// Contiguous room for bytes to be sent; empty if there is none now. Stays valid until commit().
  virtual std::span<std::byte> write_window() = 0;
  /// The first `num_bytes` of the window are part of the stream.
  virtual void commit(size_t num_bytes) = 0;
  /// Moves committed bytes towards the peer. True if any moved.
  virtual bool flush() = 0;
  /// True when every committed byte has reached the peer's side (acknowledged, or read).
  virtual bool drained() const = 0;
  /// Half-close: no more commits; the peer sees the end of the stream after the last byte.
  virtual void finish_writing() = 0;

  /// Brings what has arrived into the read window. True if it grew.
  virtual bool fill() = 0;
  /// All arrived and unreleased bytes, contiguous, 64-byte aligned at the stream's multiples of 64
  /// not promised. At least `min_capacity()` bytes can be there at once.
  virtual std::span<const std::byte> read_window() = 0;
  /// Gives the first `num_bytes` of the read window back.
  virtual void release(size_t num_bytes) = 0;
  /// Most bytes that a read window can hold; a frame is never larger.
  virtual size_t min_capacity() const = 0;

  /// True once nothing more can arrive: orderly end, error or dead peer. Bytes that arrived before
  /// are still in the read window.
  virtual bool ended() const = 0;
  /// Why it ended, for messages: "connection closed", "reset by peer", "process 123 ended", ...
  virtual std::string end_reason() const = 0;

  /// Arms wake-ups and lists what to poll; `want_write` if committed bytes or a message wait for
  /// room. False if there is something to read (or room to write, if wanted) already.
  virtual bool prepare_to_sleep(bool want_write, std::vector<PollItem>& items) = 0;

  /// "tcp 10.0.0.2:4711", "shared memory with process 123".
  virtual std::string describe() const = 0;
};

}  // namespace crossover
