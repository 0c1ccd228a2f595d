#include <cuda_runtime_api.h>

#include <string>

#include "core/error.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace crossover {
namespace {

/// Also forgets the error, so that the next call is not blamed for it.
void require(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();
  throw DeviceError(std::string("CUDA: ") + call + " failed: " + cudaGetErrorName(status) + ": " +
                    cudaGetErrorString(status));
}

cudaStream_t stream_of(StreamHandle handle) { return reinterpret_cast<cudaStream_t>(handle); }
cudaEvent_t event_of(EventHandle handle) { return reinterpret_cast<cudaEvent_t>(handle); }

class CudartRuntime final : public CudaRuntime {
 public:
  int device_count() override {
    int count = 0;
    require(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
    return count;
  }
  int current_device() override {
    int ordinal = 0;
    require(cudaGetDevice(&ordinal), "cudaGetDevice");
    return ordinal;
  }
  void set_current_device(int ordinal) override {
    require(cudaSetDevice(ordinal), "cudaSetDevice");
  }
  void ignore_captures_of_other_threads() override {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    require(cudaThreadExchangeStreamCaptureMode(&mode), "cudaThreadExchangeStreamCaptureMode");
  }
  PointerPlace place_of(const void* address) override {
    cudaPointerAttributes attributes{};
    require(cudaPointerGetAttributes(&attributes, address), "cudaPointerGetAttributes");
    const bool on_device =
        attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
    return {on_device, attributes.device};
  }

  std::byte* allocate_device(size_t bytes) override {
    void* memory = nullptr;
    require(cudaMalloc(&memory, bytes), "cudaMalloc");
    return static_cast<std::byte*>(memory);
  }
  void free_device(std::byte* memory) noexcept override { (void)cudaFree(memory); }
  std::byte* allocate_pinned(size_t bytes) override {
    void* memory = nullptr;
    require(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "cudaHostAlloc");
    return static_cast<std::byte*>(memory);
  }
  void free_pinned(std::byte* memory) noexcept override { (void)cudaFreeHost(memory); }

  StreamHandle create_stream() override {
    int lowest = 0;
    int highest = 0;
    require(cudaDeviceGetStreamPriorityRange(&lowest, &highest),
            "cudaDeviceGetStreamPriorityRange");
    cudaStream_t stream = nullptr;
    require(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, highest),
            "cudaStreamCreateWithPriority");
    return reinterpret_cast<StreamHandle>(stream);
  }
  void destroy_stream(StreamHandle stream) noexcept override {
    (void)cudaStreamDestroy(stream_of(stream));
  }
  void wait_for_stream(StreamHandle stream) override {
    require(cudaStreamSynchronize(stream_of(stream)), "cudaStreamSynchronize");
  }
  bool is_capturing(StreamHandle stream) override {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t result = cudaStreamIsCapturing(stream_of(stream), &status);
    if (result == cudaErrorStreamCaptureImplicit) {
      // The default stream, while another stream that it is ordered with is captured.
      (void)cudaGetLastError();
      return true;
    }
    require(result, "cudaStreamIsCapturing");
    return status != cudaStreamCaptureStatusNone;
  }
  void call_host(StreamHandle stream, void (*function)(void*), void* argument) override {
    require(cudaLaunchHostFunc(stream_of(stream), function, argument), "cudaLaunchHostFunc");
  }

  EventHandle create_event() override {
    cudaEvent_t event = nullptr;
    require(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    return reinterpret_cast<EventHandle>(event);
  }
  void destroy_event(EventHandle event) noexcept override {
    (void)cudaEventDestroy(event_of(event));
  }
  void record(EventHandle event, StreamHandle stream) override {
    require(cudaEventRecord(event_of(event), stream_of(stream)), "cudaEventRecord");
  }
  void wait(StreamHandle stream, EventHandle event) override {
    require(cudaStreamWaitEvent(stream_of(stream), event_of(event), 0), "cudaStreamWaitEvent");
  }
  bool is_done(EventHandle event) override {
    const cudaError_t status = cudaEventQuery(event_of(event));
    if (status == cudaErrorNotReady) {
      (void)cudaGetLastError();
      return false;
    }
    require(status, "cudaEventQuery");
    return true;
  }
  void wait_for_event(EventHandle event) override {
    require(cudaEventSynchronize(event_of(event)), "cudaEventSynchronize");
  }

  void copy_to_device(std::byte* to, const std::byte* from, size_t bytes,
                      StreamHandle stream) override {
    require(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_of(stream)),
            "cudaMemcpyAsync to the device");
  }
  void copy_to_host(std::byte* to, const std::byte* from, size_t bytes,
                    StreamHandle stream) override {
    require(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_of(stream)),
            "cudaMemcpyAsync to the host");
  }
  void fill(std::byte* to, unsigned char value, size_t bytes, StreamHandle stream) override {
    require(cudaMemsetAsync(to, value, bytes, stream_of(stream)), "cudaMemsetAsync");
  }

  void launch(const PackLaunch& launch, StreamHandle stream) override {
    require(static_cast<cudaError_t>(launch_pack(launch, stream)), "launch of the pack kernel");
  }
  void launch(const MixLaunch& launch, StreamHandle stream) override {
    require(static_cast<cudaError_t>(launch_mix(launch, stream)), "launch of the mix kernel");
  }
};

}  // namespace

std::shared_ptr<CudaRuntime> cudart_runtime() { return std::make_shared<CudartRuntime>(); }

}  // namespace crossover
