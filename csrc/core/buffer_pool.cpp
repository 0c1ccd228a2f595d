#include "core/buffer_pool.h"

#include <algorithm>
#include <utility>

namespace crossover {
namespace {

bool is_smaller(const std::unique_ptr<DeviceBuffer>& buffer, size_t bytes) {
  return buffer->size_bytes() < bytes;
}

}  // namespace

std::unique_ptr<DeviceBuffer> BufferPool::take(size_t bytes) {
  const auto found = std::lower_bound(free_.begin(), free_.end(), bytes, is_smaller);
  if (found != free_.end()) {
    std::unique_ptr<DeviceBuffer> buffer = std::move(*found);
    free_.erase(found);
    return buffer;
  }
  if (!free_.empty()) free_.pop_back();
  return device_.allocate(bytes);
}

void BufferPool::give(std::unique_ptr<DeviceBuffer> buffer) {
  if (!buffer) return;
  const auto place = std::lower_bound(free_.begin(), free_.end(), buffer->size_bytes(), is_smaller);
  free_.insert(place, std::move(buffer));
}

}  // namespace crossover
