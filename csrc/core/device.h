// Where tensors live: makes message sources and sinks over them, and mixes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/dtype.h"
#include "core/message.h"
#include "core/program.h"

namespace crossover {

enum class MemoryKind { kHost, kCuda };

/// What happens when a parameter to be sent holds NaN or infinity.
enum class NonFinitePolicy { kRaise, kIgnore };

/// Memory of a device, owned.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual std::byte* data() = 0;
  virtual size_t size_bytes() const = 0;
};

/// The tensors of a segment, borrowed: `addresses[i]` is the first element of tensor i. The spans
/// must outlive whatever is made from the view.
struct TensorList {
  Dtype dtype = Dtype::kFloat32;
  std::span<void* const> addresses;
  std::span<const int64_t> numels;
};

/// What packs a slice of tensors into a message.
struct PackSpec {
  TensorList tensors;
  Slice slice;
  Dtype wire = Dtype::kFloat32;
  NonFinitePolicy non_finite = NonFinitePolicy::kRaise;
  std::string where;  // names the segment in a NonFiniteError
};

/// One peer's message, complete.
struct WeightedMessage {
  const std::byte* data = nullptr;
  Slice slice;
  Dtype dtype = Dtype::kFloat32;  // of its elements
  double weight = 0.0;
};

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
  /// rounded to the tensor's dtype once at the end.
  virtual void mix(const TensorList& tensors, Dtype own,
                   std::span<const WeightedMessage> messages) = 0;
};

}  // namespace crossover
