#include "core/device.h"

#include <cstring>

#include "core/error.h"

namespace crossover {

// x packed into bytes, then the difference from zero mixed in with weight 1.
void Device::widen(const PackSpec& spec, DeviceBuffer& scratch, DeviceBuffer& work) {
  const int64_t numel = spec.slice.numel();
  const bool wide = spec.tensors.dtype == Dtype::kFloat64;
  const Dtype dtype = wide ? Dtype::kFloat64 : Dtype::kFloat32;
  const size_t message_bytes = packed_bytes(spec.wire, numel);
  const size_t work_bytes = packed_bytes(dtype, numel);
  check(message_bytes <= scratch.size_bytes() && work_bytes <= work.size_bytes(),
        "widen() is given buffers of sufficient size");
  const auto packed = source(spec);
  for (size_t at = 0; at < message_bytes;) {
    at += packed->produce({scratch.data() + at, message_bytes - at});
  }
  std::memset(work.data(), 0, work_bytes);
  void* const address = work.data();
  const WeightedMessage message{scratch.data(), {0, numel}, spec.wire, 1.0, &scratch};
  mix({dtype, {&address, 1}, {&numel, 1}, nullptr, &work}, dtype, {&message, 1});
}

Difference Device::difference(const TensorList&, Dtype, std::span<const WeightedMessage>) {
  throw DeviceError("difference: expected tensors in host memory, got those of another device");
}

std::string spell_non_finite(uint64_t count, Dtype tensor, Dtype wire) {
  std::string text = std::to_string(count) + " non-finite value" + (count == 1 ? "" : "s");
  if (wire == tensor) return text + " (NaN or infinity)";
  return text + " (NaN, infinity, or too large for " + std::string(dtype_name(wire)) +
         " on the wire)";
}

std::unique_ptr<TensorNotes> Device::notes(std::span<const int64_t>) { return nullptr; }

std::shared_ptr<Fence> Device::fence(StreamHandle) { return nullptr; }

void Device::set_waker(std::function<void()>) {}

}  // namespace crossover
