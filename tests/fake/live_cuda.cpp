// The fake GPU at work by itself, for tests in Python: its training streams are done at once, as
// whoever trains on the host expects, everything else when somebody asks for it. Groups of the fake
// NCCL keep their place in the streams.
#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "core/error.h"
#include "fake_cuda.h"
#include "fake_nccl.h"

namespace crossover {
namespace {

class LiveCuda final : public FakeCuda {
 public:
  LiveCuda() { run_host_functions_at_once(); }

  StreamHandle new_training_stream() {
    const std::lock_guard lock(live_mutex_);
    return *training_.insert(training_stream()).first;
  }

  void connect_nccl(void* library) {
    enqueued_ = find<decltype(enqueued_)>(library, "fake_nccl_enqueued");
    completed_ = find<decltype(completed_)>(library, "fake_nccl_completed");
    const auto begin_when = find<decltype(&fake_nccl_begin_when)>(library, "fake_nccl_begin_when");
    begin_when([](uintptr_t stream, uint64_t group) { return instance().at_gate(stream, group); });
  }

  static LiveCuda& instance() { return *shared(); }
  static const std::shared_ptr<LiveCuda>& shared() {
    static const auto* const live = new std::shared_ptr<LiveCuda>(std::make_shared<LiveCuda>());
    return *live;
  }

  // What is no memory of the fake's is a tensor of torch's, which stands for one on device 0.
  PointerPlace place_of(const void* address) override {
    const PointerPlace place = FakeCuda::place_of(address);
    return place.on_device ? place : PointerPlace{true, 0};
  }

  void record(EventHandle event, StreamHandle stream) override {
    gate(stream);
    FakeCuda::record(event, stream);
  }

  bool is_done(EventHandle event) override {
    run();
    return FakeCuda::is_done(event);
  }

  void wait_for_event(EventHandle event) override {
    while (!is_done(event)) std::this_thread::yield();
  }

  void wait_for_stream(StreamHandle stream) override {
    const EventHandle event = create_event();
    record(event, stream);
    wait_for_event(event);
    destroy_event(event);
  }

  using FakeCuda::launch;
  void launch(const MixLaunch& launch, StreamHandle stream) override {
    FakeCuda::launch(launch, stream);
    const bool is_training = [&] {
      const std::lock_guard lock(live_mutex_);
      return training_.contains(stream);
    }();
    if (is_training) wait_for_stream(stream);
  }

 private:
  template <typename Function>
  static Function find(void* library, const char* name) {
    const auto function = reinterpret_cast<Function>(dlsym(library, name));
    check(function != nullptr, name);
    return function;
  }

  // What follows on the stream waits for the groups that it has got.
  void gate(StreamHandle stream) {
    if (!enqueued_) return;
    const uint64_t groups = enqueued_(stream);
    {
      const std::lock_guard lock(live_mutex_);
      if (std::exchange(gated_[stream], groups) == groups) return;
    }
    put_gate(stream, groups,
             [completed = completed_, stream, groups] { return completed(stream) >= groups; });
  }

  std::mutex live_mutex_;
  std::set<StreamHandle> training_;
  std::map<StreamHandle, uint64_t> gated_;
  decltype(&fake_nccl_enqueued) enqueued_ = nullptr;
  decltype(&fake_nccl_completed) completed_ = nullptr;
};

}  // namespace

std::shared_ptr<CudaRuntime> cudart_runtime() { return LiveCuda::shared(); }

}  // namespace crossover

// For ctypes.
extern "C" {

__attribute__((visibility("default"))) uint64_t fake_gpu_training_stream() {
  return crossover::LiveCuda::instance().new_training_stream();
}

__attribute__((visibility("default"))) int fake_gpu_connect_nccl(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library) crossover::LiveCuda::instance().connect_nccl(library);
  return library ? 1 : 0;
}

__attribute__((visibility("default"))) void fake_gpu_fail_next(const char* call) {
  crossover::LiveCuda::instance().fail_next(call);
}

__attribute__((visibility("default"))) int fake_gpu_calls(const char* call) {
  return crossover::LiveCuda::instance().calls(call);
}

__attribute__((visibility("default"))) void fake_gpu_set_capturing(uint64_t stream, int on) {
  crossover::LiveCuda::instance().set_capturing(stream, on != 0);
}

}  // extern "C"
