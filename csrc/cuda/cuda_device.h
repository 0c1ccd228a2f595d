// Tensors in the memory of one GPU.
//
// Packs and the phases of longer programs run on a stream of the device's own, copies to and from
// the host on two more, mixes on the training stream. Streams wait for each other by events; the
// host waits for none of them in a step. docs/design.md, "Devices and streams", has the picture.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "core/device.h"
#include "cuda/cuda_source.h"
#include "cuda/cuda_tables.h"
#include "cuda/kernels.h"
#include "cuda/resources.h"

namespace crossover {

/// Sources and sinks offer their device memory to a transport that acquires it, and copy through
/// pinned memory for one that does not. Sources, sinks and notes must not outlive the device.
///
/// Buffers, notes and the first message of each size are allocated, which may wait for the whole
/// GPU; a step that meets only sizes and addresses known before allocates nothing.
class CudaDevice final : public Device {
 public:
  /// Device `ordinal` of those that CUDA shows. InvalidArgument if there is no such device.
  CudaDevice(std::shared_ptr<CudaRuntime> runtime, int ordinal);
  ~CudaDevice() override;

  MemoryKind memory() const override { return MemoryKind::kCuda; }
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override;
  std::unique_ptr<MessageSource> source(const PackSpec& spec) override;
  std::unique_ptr<MessageSink> sink(DeviceBuffer& buffer, size_t num_bytes) override;
  /// At most kMaxMixMessages messages, of one type. InvalidArgument while the tensors' stream is
  /// being captured into a graph, or if a tensor is not on this device; nothing is written then.
  void mix(const TensorList& tensors, Dtype own,
           std::span<const WeightedMessage> messages) override;
  void replace(const TensorList& tensors, Dtype own,
               std::span<const WeightedMessage> messages) override;
  void widen(const PackSpec& spec, DeviceBuffer& scratch, DeviceBuffer& work) override;

  std::unique_ptr<TensorNotes> notes(std::span<const int64_t> numels) override;
  std::shared_ptr<Fence> fence(StreamHandle training_stream) override;
  void poll() override;
  void set_waker(std::function<void()> wake) override;
  /// Waits at most a second for the GPU to take note.
  void cancel_mixes() noexcept override;
  void drain() override;

  int ordinal() const { return ordinal_; }

 private:
  /// The word in device memory that mixes look at.
  struct Cancellation {
    explicit Cancellation(CudaRuntime& runtime);
    CudaStream stream;
    CudaMemory flag;
    std::mutex mutex;
    std::condition_variable changed;
    bool noted = false;  // guarded by mutex
  };
  static void on_cancelled(void* cancellation);

  void refuse_capture(StreamHandle stream, const char* what);
  void enqueue_mix(const TensorList& tensors, MixLaunch launch,
                   std::span<const WeightedMessage> messages);
  BoundTensors bind_for_mix(const TensorList& tensors, const Slice& slice, StreamHandle stream);

  const std::shared_ptr<CudaRuntime> runtime_;
  const int ordinal_;
  std::unique_ptr<CudaParts> parts_;
  std::unique_ptr<Cancellation> cancellation_;
  bool ignores_captures_ = false;  // progress thread
};

}  // namespace crossover
