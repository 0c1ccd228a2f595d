// Packing on the device's own stream, and what it finds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "cuda/cuda_tables.h"
#include "cuda/kernels.h"
#include "cuda/pool.h"
#include "cuda/resources.h"
#include "cuda/staging.h"

namespace crossover {

class CudaFence final : public Fence {
 public:
  explicit CudaFence(std::shared_ptr<CudaEvent> event) : event_(std::move(event)) {}
  CudaEvent& event() const { return *event_; }

 private:
  std::shared_ptr<CudaEvent> event_;
};

/// What one pack finds, and when it is done. Kept from pack to pack.
class PackResult {
 public:
  explicit PackResult(CudaRuntime& runtime);

  /// Recorded after the pack and the copy of what it found to the host.
  CudaEvent& packed() { return packed_; }
  /// Once packed() is done: throws NonFiniteError if the policy of the pack says so.
  void check_found() const;

 private:
  friend class Packer;
  void begin(const PackSpec& spec);
  NonFiniteFound found_so_far() const;

  CudaEvent packed_;
  CudaMemory counter_;       // a NonFiniteFound that only grows
  CudaMemory counter_copy_;  // pinned
  unsigned long long found_before_ = 0;
  NonFinitePolicy policy_ = NonFinitePolicy::kRaise;
  Dtype tensor_ = Dtype::kFloat32;
  Dtype wire_ = Dtype::kFloat32;
  std::string where_;
  std::vector<std::string> names_;  // of the tensors, kept: their plan may end before the pack
};

/// Progress thread, except where said.
class Packer {
 public:
  explicit Packer(std::shared_ptr<CudaRuntime> runtime)
      : runtime_(runtime), stream_(*runtime), buffers_(runtime), results_(runtime) {}

  StreamHandle stream() const { return stream_.get(); }
  /// A buffer of at least `bytes` whose last reader the stream waits for. Any thread may let it go.
  std::shared_ptr<CudaBuffer> take_buffer(size_t bytes);
  /// Packs into `out`, which the caller has made the stream wait for. std::logic_error, with
  /// nothing done, if there is no kernel for the types or the slice is not within the tensors.
  std::shared_ptr<PackResult> pack(const PackSpec& spec, std::byte* out);
  /// Casts a packed message in `from` to what programs of several phases work on.
  void widen(DeviceBuffer& packed, Dtype wire, DeviceBuffer& work, Dtype dtype, int64_t numel);
  /// poll() checks what the pack has found.
  void watch(std::shared_ptr<PackResult> result) { watched_.push_back(std::move(result)); }
  void poll();

 private:
  std::shared_ptr<PackResult> take_result();
  BoundTensors bind(const PackSpec& spec);

  const std::shared_ptr<CudaRuntime> runtime_;
  CudaStream stream_;
  Pool<CudaBuffer> buffers_;
  Pool<PackResult> results_;
  std::vector<std::shared_ptr<PackResult>> watched_;
};

}  // namespace crossover
