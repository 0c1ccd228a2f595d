#include "cuda/cuda_source.h"

#include <algorithm>

namespace crossover {

CudaSource::CudaSource(CudaParts& parts, const PackSpec& spec)
    : parts_(parts),
      element_bytes_(dtype_bytes(spec.wire)),
      num_bytes_(packed_bytes(spec.wire, spec.slice.numel())) {
  const DeviceScope scope(*parts_.runtime, parts_.ordinal);
  buffer_ = parts_.packer.take_buffer(num_bytes_);
  result_ = parts_.packer.pack(spec, buffer_->data());
}

size_t CudaSource::produce(std::span<std::byte> out) {
  const DeviceScope scope(*parts_.runtime, parts_.ordinal);
  if (!copy_) copy_.emplace(parts_.staging, *buffer_, result_->packed(), num_bytes_);
  std::span<std::byte> room = out.first(out.size() - out.size() % element_bytes_);
  while (!room.empty() && copy_->ready()) {
    if (!checked_) result_->check_found();
    checked_ = true;
    room = room.subspan(copy_->take(room));
  }
  const bool stalled = !room.empty() && !copy_->finished();
  if (stalled) copy_->ask_to_be_woken();
  return out.size() - out.size() % element_bytes_ - room.size();
}

const std::byte* CudaSource::acquire(StreamHandle stream) {
  const DeviceScope scope(*parts_.runtime, parts_.ordinal);
  result_->packed().hold(stream);
  parts_.packer.watch(result_);
  return buffer_->data();
}

void CudaSource::release(StreamHandle stream) {
  const DeviceScope scope(*parts_.runtime, parts_.ordinal);
  buffer_->read().record(stream);
}

size_t CudaSink::consume(std::span<const std::byte> in) {
  const DeviceScope scope(*parts_.runtime, parts_.ordinal);
  return copy_.consume(in);
}

std::byte* CudaSink::acquire(StreamHandle stream) {
  const DeviceScope scope(*parts_.runtime, parts_.ordinal);
  buffer_.read().hold(stream);
  return buffer_.data();
}

void CudaSink::release(StreamHandle stream) {
  const DeviceScope scope(*parts_.runtime, parts_.ordinal);
  buffer_.written().record(stream);
}

}  // namespace crossover
