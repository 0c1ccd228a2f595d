// Tensors on the GPU, and their image in the host's memory.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "cuda/cuda_tables.h"
#include "gpu_memory.h"

namespace crossover::testing {

using Numels = std::vector<int64_t>;

/// Tensors on the GPU, each `shift` elements after an aligned address, and their image.
class Tensors {
 public:
  Tensors(std::shared_ptr<CudaRuntime> runtime, StreamHandle stream, Dtype dtype, Numels numels,
          size_t shift, Values values, uint32_t seed)
      : notes(runtime, 0, numels, stream), dtype_(dtype), numels_(std::move(numels)) {
    for (const int64_t numel : numels_) {
      const Bytes elements = random_elements(dtype, numel, values, seed++);
      memory_.push_back(
          std::make_unique<GpuBytes>(*runtime, stream, elements, shift * dtype_bytes(dtype)));
      addresses_.push_back(memory_.back()->data());
      image.insert(image.end(), elements.begin(), elements.end());
    }
  }

  BoundTensors bind(const Slice& slice, StreamHandle stream) {
    const TensorList list{dtype_, addresses_, numels_, &notes};
    return bind_noted(list, slice, notes.for_packs(), stream);
  }
  int64_t numel() const { return notes.layout().numel(); }
  std::byte* image_at(int64_t element) {
    return image.data() + static_cast<size_t>(element) * dtype_bytes(dtype_);
  }
  Bytes get() const {
    Bytes all;
    for (const auto& tensor : memory_) {
      const Bytes content = tensor->get();
      all.insert(all.end(), content.begin(), content.end());
    }
    return all;
  }

  CudaNotes notes;
  Bytes image;  // all elements laid end to end, as they were

 private:
  Dtype dtype_;
  Numels numels_;
  std::vector<std::unique_ptr<GpuBytes>> memory_;
  std::vector<void*> addresses_;
};

}  // namespace crossover::testing
