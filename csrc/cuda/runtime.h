// The calls of the CUDA runtime that are used, as a seam: real over cudart, fake in tests.
//
// This header and everything built on it alone need no CUDA toolkit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/message.h"

namespace crossover {

struct MixLaunch;
struct PackLaunch;

using EventHandle = uintptr_t;

/// Where an address lies, as the driver sees it.
struct PointerPlace {
  bool on_device = false;
  int ordinal = -1;  // of the device
};

/// Every call may come from any thread and throws DeviceError naming itself and CUDA's reason,
/// except those marked noexcept, which are for destructors. Calls on streams return at once.
class CudaRuntime {
 public:
  virtual ~CudaRuntime() = default;

  virtual int device_count() = 0;
  /// The calling thread's device.
  virtual int current_device() = 0;
  virtual void set_current_device(int ordinal) = 0;
  /// Lets the calling thread work while another one captures a graph (cudaStreamCaptureModeGlobal
  /// forbids queries and allocations on every thread that has not opted out).
  virtual void ignore_captures_of_other_threads() = 0;
  virtual PointerPlace place_of(const void* address) = 0;

  virtual std::byte* allocate_device(size_t bytes) = 0;
  virtual void free_device(std::byte* memory) noexcept = 0;
  /// Pinned host memory.
  virtual std::byte* allocate_pinned(size_t bytes) = 0;
  virtual void free_pinned(std::byte* memory) noexcept = 0;

  /// Not ordered by the default stream; of the highest priority.
  virtual StreamHandle create_stream() = 0;
  virtual void destroy_stream(StreamHandle stream) noexcept = 0;
  virtual void wait_for_stream(StreamHandle stream) = 0;
  virtual bool is_capturing(StreamHandle stream) = 0;
  /// Calls `function(argument)` on a thread of the driver once the stream's work so far is done.
  /// The function must not call CUDA.
  virtual void call_host(StreamHandle stream, void (*function)(void*), void* argument) = 0;

  /// An event without timing; done until it is recorded.
  virtual EventHandle create_event() = 0;
  virtual void destroy_event(EventHandle event) noexcept = 0;
  /// The event stands for the work that the stream has got so far.
  virtual void record(EventHandle event, StreamHandle stream) = 0;
  /// What `stream` gets from now on begins after the event's last record.
  virtual void wait(StreamHandle stream, EventHandle event) = 0;
  virtual bool is_done(EventHandle event) = 0;
  virtual void wait_for_event(EventHandle event) = 0;

  virtual void copy_to_device(std::byte* to, const std::byte* from, size_t bytes,
                              StreamHandle stream) = 0;
  virtual void copy_to_host(std::byte* to, const std::byte* from, size_t bytes,
                            StreamHandle stream) = 0;
  virtual void fill(std::byte* to, unsigned char value, size_t bytes, StreamHandle stream) = 0;

  /// kernels.h
  virtual void launch(const PackLaunch& launch, StreamHandle stream) = 0;
  virtual void launch(const MixLaunch& launch, StreamHandle stream) = 0;
};

/// The real one. It needs no driver until it is called.
std::shared_ptr<CudaRuntime> cudart_runtime();

}  // namespace crossover
