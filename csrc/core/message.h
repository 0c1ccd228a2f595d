// What moves between ranks, as the engine and a transport see it.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>

namespace crossover {

/// Names a message. Both ends derive it alone; from one rank to another a tag is used once.
struct MessageTag {
  uint32_t plan = 0;
  uint32_t segment = 0;
  uint64_t round = 0;
  uint32_t phase = 0;
  auto operator<=>(const MessageTag&) const = default;
};

/// Bytes to be sent, pulled by a transport. Made by a Device over tensors; valid until the send
/// completes or the transport is destroyed. Called on the progress thread.
class MessageSource {
 public:
  virtual ~MessageSource() = default;
  virtual size_t num_bytes() const = 0;
  /// Writes the next bytes of the message to the start of `out` and returns how many: as many as
  /// fit in whole units of the codec, 0 if the next ones are not ready yet. Throws NonFiniteError
  /// if the device's guard finds NaN or infinity in what it was about to write.
  virtual size_t produce(std::span<std::byte> out) = 0;
};

/// Room for a message that is expected, filled by a transport on the progress thread.
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  virtual size_t num_bytes() const = 0;
  /// Takes the next bytes of the message and returns how many: all whole units of the codec in
  /// `in`, possibly 0.
  virtual size_t consume(std::span<const std::byte> in) = 0;
};

}  // namespace crossover
