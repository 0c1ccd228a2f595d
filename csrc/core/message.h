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

/// Plan ids that no plan has: the messages of collectives (segment: which message of the call,
/// round: which call) and those between two ranks (segment: the caller's tag).
inline constexpr uint32_t kCollectivePlan = 0xffffffff;
inline constexpr uint32_t kPointToPointPlan = 0xfffffffe;

/// A stream of a device, as a number (a cudaStream_t); 0 is its default stream. No meaning on the
/// host.
using StreamHandle = uintptr_t;

/// Bytes to be sent, pulled by a transport. Made by a Device over tensors; valid until the send
/// completes or the transport is destroyed. Called on the progress thread. A transport uses either
/// produce(), or acquire() and release(), for the whole of a message.
class MessageSource {
 public:
  virtual ~MessageSource() = default;
  /// Travels with the message over transports that carry weights; set before send().
  double weight = 0.0;
  virtual size_t num_bytes() const = 0;
  /// Writes the next bytes of the message to the start of `out` and returns how many: as many as
  /// fit in whole units of the codec, 0 if the next ones are not ready yet. Throws NonFiniteError
  /// if the device's guard finds NaN or infinity in what it was about to write.
  virtual size_t produce(std::span<std::byte> out) = 0;
  /// For a transport that moves device memory by itself: the device address of the whole message,
  /// which work that `stream` gets from now on may read; null if the message is not resident.
  virtual const std::byte* acquire(StreamHandle stream) {
    (void)stream;
    return nullptr;
  }
  /// After acquire(): nothing reads the message but the work that `stream` has got so far.
  virtual void release(StreamHandle stream) { (void)stream; }
};

/// Room for a message that is expected, filled by a transport on the progress thread: by consume(),
/// or by acquire() and release().
class MessageSink {
 public:
  virtual ~MessageSink() = default;
  /// That of the source once the message has arrived, over transports that carry weights.
  double weight = 0.0;
  virtual size_t num_bytes() const = 0;
  /// Takes the next bytes of the message and returns how many: all whole units of the codec in
  /// `in`, possibly 0.
  virtual size_t consume(std::span<const std::byte> in) = 0;
  /// The device address of the room, which work that `stream` gets from now on may write; null if
  /// it is not resident.
  virtual std::byte* acquire(StreamHandle stream) {
    (void)stream;
    return nullptr;
  }
  /// After acquire(), before the transport reports the message: it is complete when the work that
  /// `stream` has got so far is done. The host need not wait for that: a mix does.
  virtual void release(StreamHandle stream) { (void)stream; }
};

}  // namespace crossover
