// Tensors in host memory: fused pack and mix with SIMD chosen at run time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "core/device.h"

namespace crossover {

/// Sources pack straight into the transport's window, sinks copy straight into the inbox. Sources
/// must not outlive the device that made them.
class HostDevice final : public Device {
 public:
  MemoryKind memory() const override { return MemoryKind::kHost; }
  /// 256-byte aligned, not initialised. Throws DeviceError if there is no memory.
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override;
  /// Throws std::logic_error if the slice is not within the tensors.
  std::unique_ptr<MessageSource> source(const PackSpec& spec) override;
  /// Throws std::logic_error if the buffer is smaller than `num_bytes`.
  std::unique_ptr<MessageSink> sink(DeviceBuffer& buffer, size_t num_bytes) override;
  /// Throws std::logic_error, with nothing written, if a message's slice is not within the tensors.
  void mix(const TensorList& tensors, Dtype own,
           std::span<const WeightedMessage> messages) override;
  /// Throws std::logic_error as mix() does.
  void replace(const TensorList& tensors, Dtype own,
               std::span<const WeightedMessage> messages) override;
  /// Throws std::logic_error as mix() does.
  Difference difference(const TensorList& tensors, Dtype own,
                        std::span<const WeightedMessage> messages) override;

  /// How many NaNs and infinities this device's sources have met, whatever the policy.
  int64_t non_finite_found() const { return non_finite_found_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> non_finite_found_{0};
};

std::shared_ptr<HostDevice> host_device();

/// Elements of all tensors together.
int64_t total_numel(const TensorList& tensors);

/// Packs whole tensors, laid end to end, into `out`, which holds exactly that many elements of
/// `wire`. Returns how many are NaN or infinite.
int64_t pack_tensors(const TensorList& tensors, Dtype wire, std::span<std::byte> out);

}  // namespace crossover
