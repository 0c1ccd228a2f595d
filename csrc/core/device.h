// Where tensors live: makes message sources and sinks over them, and mixes.
//
// A device with streams works behind the host's back; nothing here waits for it but drain(). What
// orders its work, each by an event:
//   training stream at the post (fence) -> pack          a source reads what training left
//   pack -> transfer out -> next pack into that buffer   acquire() and release() of the source
//   transfer in -> mix -> next transfer into that inbox  acquire() and release() of the sink
//   pack of a segment -> mix of that segment             through its TensorNotes
// mix() writes the user's tensors on the training stream itself, so that what training launches
// after the wait sees them mixed.
//
// Right:  fence = device.fence(stream); ... device.source({..., .after = fence}); ... device.mix()
// Wrong:  a kernel that writes the tensors, on any stream, between the fence and the mix;
//         another stream for the mix than the one that uses the tensors next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "core/dtype.h"
#include "core/message.h"
#include "core/program.h"

namespace crossover {

enum class MemoryKind { kHost, kCuda };

/// What happens when a parameter to be sent holds NaN or infinity, or becomes infinite on the wire.
enum class NonFinitePolicy { kRaise, kIgnore };

/// Memory of a device, owned.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual std::byte* data() = 0;
  virtual size_t size_bytes() const = 0;
};

/// What a device keeps about the tensors of one segment from round to round (tables of addresses,
/// events). Used by one round at a time; may be destroyed only when no source over them is left.
class TensorNotes {
 public:
  virtual ~TensorNotes() = default;
};

/// A point in the work of the training stream.
class Fence {
 public:
  virtual ~Fence() = default;
};

/// The tensors of a segment, borrowed: `addresses[i]` is the first element of tensor i. The spans
/// must outlive whatever is made from the view.
struct TensorList {
  Dtype dtype = Dtype::kFloat32;
  std::span<void* const> addresses;
  std::span<const int64_t> numels;
  TensorNotes* notes = nullptr;    // of the user's tensors, made for these numels by notes()
  DeviceBuffer* buffer = nullptr;  // the buffer they lie in; null: they are the user's tensors
  StreamHandle stream = 0;         // the user's tensors: the stream on which mix() writes them
  /// How mix() rounds sums into 2-byte elements. 0: to nearest even. Else up or down with the
  /// chance that keeps the expectation, drawn from this key and the element's index within the
  /// tensors.
  uint64_t rounding_key = 0;
};

/// What packs a slice of tensors into a message. The slice begins at a multiple of unit_numel(wire)
/// elements and ends at one or with the tensors.
struct PackSpec {
  TensorList tensors;
  Slice slice;
  Dtype wire = Dtype::kFloat32;
  NonFinitePolicy non_finite = NonFinitePolicy::kRaise;
  std::string where;                        // names the segment in a NonFiniteError
  std::shared_ptr<Fence> after = nullptr;   // the tensors are read after this point; null: at once
  std::span<const std::string> names = {};  // of the tensors, for messages; empty: unknown
};

/// "2 non-finite values (NaN or infinity)", for a NonFiniteError about tensors of type `tensor`.
std::string spell_non_finite(uint64_t count, Dtype tensor, Dtype wire);

/// One peer's message, complete.
struct WeightedMessage {
  const std::byte* data = nullptr;
  Slice slice;
  Dtype dtype = Dtype::kFloat32;  // of its elements
  double weight = 0.0;
  DeviceBuffer* buffer = nullptr;  // where `data` lies; a device with streams needs it
};

/// How far messages are from what this rank sends: sums over elements.
struct Difference {
  double squares = 0.0;      // (m_jk - m_k)^2
  double own_squares = 0.0;  // m_k^2, again for each message
};

/// Of so many blocks of kSliceUnitNumel elements one is measured.
inline constexpr int64_t kMeasuredBlocks = 32;

/// Every method is callable from the training thread and the progress thread at once, on disjoint
/// tensors and buffers.
class Device {
 public:
  virtual ~Device() = default;
  virtual MemoryKind memory() const = 0;
  virtual std::unique_ptr<DeviceBuffer> allocate(size_t bytes) = 0;
  /// A source over the tensors' memory as it is when pulled: m = Q(x) in `spec.wire`.
  virtual std::unique_ptr<MessageSource> source(const PackSpec& spec) = 0;
  /// A sink that fills the first `num_bytes` of `buffer`.
  virtual std::unique_ptr<MessageSink> sink(DeviceBuffer& buffer, size_t num_bytes) = 0;
  /// For every element k: x_k <- x_k + sum_j weight_j * (m_jk - Q(x_k)) over the messages whose
  /// slice holds k, in the order given, Q the cast to `own` and back, with x_k read once before.
  /// Computed as acc = fma(weight_j, m_jk - q, acc) in float32 (float64 for float64 tensors),
  /// rounded to the tensor's dtype once at the end, as the list's rounding_key says. A weight of 1
  /// is acc = (acc - q) + m_jk, so that an x that is what was sent becomes what has arrived, the
  /// same bits but a zero's sign.
  virtual void mix(const TensorList& tensors, Dtype own,
                   std::span<const WeightedMessage> messages) = 0;
  /// x_k <- m_jk for every element k that a message holds, rounded to the tensor's dtype; weights
  /// have no meaning, slices are disjoint. Bit for bit, but that -0 may become 0 and which NaN a
  /// NaN is. `own` as for mix().
  virtual void replace(const TensorList& tensors, Dtype own,
                       std::span<const WeightedMessage> messages) = 0;
  /// What mix() with these arguments would add to the tensors, without its weights: over the first
  /// of each kMeasuredBlocks blocks of every message, counted from where its slice begins. Read
  /// only, the same bits whatever the CPU. DeviceError on a device that cannot.
  virtual Difference difference(const TensorList& tensors, Dtype own,
                                std::span<const WeightedMessage> messages);
  /// work[k] <- Q(x_k) over `spec.slice`, in float32 (float64 for float64 tensors): where a program
  /// of several phases starts. `scratch` has room for the slice in `spec.wire`. The tensors may lie
  /// in `work` itself.
  virtual void widen(const PackSpec& spec, DeviceBuffer& scratch, DeviceBuffer& work);

  // What follows is for devices with streams; elsewhere nothing happens.

  /// Prepares for tensors of `numels`, which is copied. Not in a step.
  virtual std::unique_ptr<TensorNotes> notes(std::span<const int64_t> numels);
  /// Training thread: the point after all work that `training_stream` has got so far. Throws
  /// InvalidArgument while the stream is being captured into a graph.
  virtual std::shared_ptr<Fence> fence(StreamHandle training_stream);
  /// Progress thread, once a turn: throws what work behind the host's back has found, a
  /// NonFiniteError (of a message that has left already, if its transport acquires) or DeviceError.
  virtual void poll() {}
  /// `wake` ends the progress thread's sleep when a source or sink that gave or took nothing can go
  /// on; called from any thread. After set_waker(nullptr) returned it is not called any more.
  virtual void set_waker(std::function<void()> wake);
  /// From now on for ever, mixes that the device has not begun write nothing: what they wait for
  /// may be cut off. Called after a failure, before a transport aborts.
  virtual void cancel_mixes() noexcept {}
  /// Waits until all work begun by sources, sinks and mixes into buffers is done: after it, tensors
  /// of a plan that was removed in mid-round may be freed. Not in a step.
  virtual void drain() {}
};

}  // namespace crossover
