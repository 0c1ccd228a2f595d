// Owners of what the CUDA runtime gives out.
#pragma once

#include <cstddef>
#include <exception>

#include "cuda/runtime.h"

namespace crossover {

/// The calling thread's device is `ordinal` while this lives.
class DeviceScope {
 public:
  DeviceScope(CudaRuntime& runtime, int ordinal)
      : runtime_(runtime), before_(runtime.current_device()), changed_(before_ != ordinal) {
    if (changed_) runtime_.set_current_device(ordinal);
  }
  ~DeviceScope() {
    if (!changed_) return;
    try {
      runtime_.set_current_device(before_);
    } catch (const std::exception&) {
      // The device was this thread's a moment ago; the next call on it tells what is wrong.
    }
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  CudaRuntime& runtime_;
  int before_;
  bool changed_;
};

class CudaStream {
 public:
  explicit CudaStream(CudaRuntime& runtime) : runtime_(runtime), handle_(runtime.create_stream()) {}
  ~CudaStream() { runtime_.destroy_stream(handle_); }
  CudaStream(const CudaStream&) = delete;
  CudaStream& operator=(const CudaStream&) = delete;
  StreamHandle get() const { return handle_; }

 private:
  CudaRuntime& runtime_;
  StreamHandle handle_;
};

class CudaEvent {
 public:
  explicit CudaEvent(CudaRuntime& runtime) : runtime_(runtime), handle_(runtime.create_event()) {}
  ~CudaEvent() { runtime_.destroy_event(handle_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  EventHandle get() const { return handle_; }
  void record(StreamHandle stream) { runtime_.record(handle_, stream); }
  /// Makes `stream` wait.
  void hold(StreamHandle stream) { runtime_.wait(stream, handle_); }
  bool is_done() { return runtime_.is_done(handle_); }
  /// Makes the calling thread wait. Not in a step.
  void wait() { runtime_.wait_for_event(handle_); }
  /// wait() for destructors: a device that has failed does nothing any more.
  void settle() noexcept {
    try {
      wait();
    } catch (const std::exception&) {
      return;
    }
  }

 private:
  CudaRuntime& runtime_;
  EventHandle handle_;
};

enum class CudaMemoryKind { kDevice, kPinned };

class CudaMemory {
 public:
  CudaMemory(CudaRuntime& runtime, CudaMemoryKind kind, size_t bytes)
      : runtime_(runtime), kind_(kind), size_bytes_(bytes) {
    if (bytes == 0) return;
    data_ = kind == CudaMemoryKind::kDevice ? runtime.allocate_device(bytes)
                                            : runtime.allocate_pinned(bytes);
  }
  ~CudaMemory() {
    if (!data_) return;
    if (kind_ == CudaMemoryKind::kDevice) {
      runtime_.free_device(data_);
    } else {
      runtime_.free_pinned(data_);
    }
  }
  CudaMemory(const CudaMemory&) = delete;
  CudaMemory& operator=(const CudaMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 private:
  CudaRuntime& runtime_;
  CudaMemoryKind kind_;
  size_t size_bytes_;
  std::byte* data_ = nullptr;
};

}  // namespace crossover
