// A segment of one phase mixed while its messages arrive: memory is read once and written once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/buffer_pool.h"
#include "core/device.h"
#include "core/message.h"

namespace crossover {

/// Every message, in and out, is the whole segment in one wire type. Element k is mixed as soon as
///   the tensors may be written (between allow() and forbid()),
///   every outgoing message has packed it, for they send what x was before, and
///   it has come from every peer: the row's order is kept, whatever the order of arrival.
/// A transport's window is mixed straight from there. What comes before it can be mixed goes to an
/// inbox, taken from the pool with its first byte, so that a transport is never held up. Whoever
/// drives the exchange calls; the result has the same bits as a mix of complete messages.
class StreamedMix {
 public:
  /// `weigh` gives the weight of every receive; called once a round, when a part of every message
  /// is there, hence its sink's weight as well.
  using Weigh = std::function<std::vector<double>()>;

  /// `device` and `pool` outlive it.
  StreamedMix(Device& device, BufferPool& pool, int64_t numel);
  ~StreamedMix();

  /// A new round of `num_receives` >= 1 messages, none of which has come and none of which is sent.
  void begin_round(Dtype wire, size_t num_receives, Weigh weigh);
  /// Takes the message of receive `index`; lives until the next begin_round().
  MessageSink& sink(size_t index) { return *receives_[index].sink; }
  /// Sends through `source`, and counts what it has packed. Before start().
  MessageSource& send(std::unique_ptr<MessageSource> source);
  /// All sends of the round have been given.
  void start() { started_ = true; }

  /// From now on `tensors`, which live until forbid(), may be written.
  void allow(const TensorList& tensors);
  void forbid() { tensors_ = {}; }
  /// All messages have come and gone: mixes into `tensors` what is left, and gives the inboxes
  /// back.
  void finish(const TensorList& tensors);

 private:
  class Sink;
  class Source;
  struct Incoming {
    std::unique_ptr<MessageSink> sink;
    size_t arrived_bytes = 0;             // mixed or in the inbox
    std::unique_ptr<DeviceBuffer> inbox;  // the message at its own offsets
  };

  size_t take(Incoming& from, std::span<const std::byte> in);
  int64_t elements_in(size_t num_bytes) const;
  size_t mixable_bytes(const Incoming* without) const;
  void keep(Incoming& from, std::span<const std::byte> in);
  void mix_inboxes();
  void mix(size_t num_bytes, const Incoming* direct, const std::byte* data);

  Device& device_;
  BufferPool& pool_;
  const int64_t numel_;
  Dtype wire_ = Dtype::kFloat32;
  size_t num_bytes_ = 0;   // of a message
  size_t unit_bytes_ = 1;  // of a whole unit of the wire
  std::vector<Incoming> receives_;
  std::vector<std::unique_ptr<Source>> sources_;
  Weigh weigh_;
  std::vector<double> weights_;  // empty before the first mix of a round
  bool started_ = false;
  size_t mixed_bytes_ = 0;
  TensorList tensors_;  // no addresses: they may not be written
};

}  // namespace crossover
