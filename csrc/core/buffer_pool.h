// Device memory that is used again by whoever needs room next.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/device.h"

namespace crossover {

/// The buffers of a plan that has room for a few segments only. One thread at a time.
class BufferPool {
 public:
  /// `device` outlives the pool and its buffers.
  explicit BufferPool(Device& device) : device_(device) {}

  /// A buffer of at least `bytes`: the smallest free one that has them, else a new one in the place
  /// of the largest free one, so that the pool never holds more than was in use at once.
  std::unique_ptr<DeviceBuffer> take(size_t bytes);
  /// Gives a buffer back; null is ignored.
  void give(std::unique_ptr<DeviceBuffer> buffer);

 private:
  Device& device_;
  std::vector<std::unique_ptr<DeviceBuffer>> free_;  // ascending in size
};

}  // namespace crossover
