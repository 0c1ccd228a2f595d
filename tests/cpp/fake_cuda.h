// A GPU whose streams do their work when the test says so, in an order that it draws. Its device
// memory is host memory; its kernels are the host's, driven by the tiles of the real ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace crossover {

class FakeCuda : public CudaRuntime {
 public:
  // --- what a test does with it

  /// A stream of the training program's.
  StreamHandle training_stream() { return create_stream(); }
  /// Puts work on a stream.
  void put(StreamHandle stream, std::string name, std::function<void()> work);
  /// What the stream gets from now on waits until `open` says so, which is asked with the mutex
  /// held. `number` is for at_gate().
  void put_gate(StreamHandle stream, uint64_t number, std::function<bool()> open);
  /// Whether the stream has nothing left to do, or nothing before a gate of at least this number.
  /// Also false if another thread works with the fake just now.
  bool at_gate(StreamHandle stream, uint64_t number) const;
  /// Does the next thing on a stream; false if it has none or waits.
  bool step(StreamHandle stream);
  /// Everything that can be done without waiting for the host, streams in turn.
  void run();
  /// At most `count` steps, in bursts on streams drawn by `generator`: some lag far behind.
  void run_some(std::mt19937& generator, int count);
  /// From now on the stream does nothing, or goes on.
  void hold(StreamHandle stream) { held_.insert(stream); }
  void let_go(StreamHandle stream) { held_.erase(stream); }
  /// The next call of this name fails.
  void fail_next(const std::string& call) { failing_ = call; }
  /// From now on a call_host() first does what is before it on its stream, then the call.
  void run_host_functions_at_once() { host_functions_at_once_ = true; }
  void set_capturing(StreamHandle stream, bool on);
  /// The device that memory allocated from now on belongs to.
  void set_place(int ordinal) { place_ = ordinal; }

  /// Names of work done, in its order.
  const std::vector<std::string>& done() const { return done_; }
  /// Number of calls so far.
  int calls(const std::string& call) const;

  // --- the seam

  int device_count() override { return count("cudaGetDeviceCount"), 2; }
  int current_device() override;
  void set_current_device(int ordinal) override;
  void ignore_captures_of_other_threads() override { count("cudaThreadExchangeStreamCaptureMode"); }
  PointerPlace place_of(const void* address) override;
  std::byte* allocate_device(size_t bytes) override;
  void free_device(std::byte* memory) noexcept override;
  std::byte* allocate_pinned(size_t bytes) override;
  void free_pinned(std::byte* memory) noexcept override;
  StreamHandle create_stream() override;
  /// As with CUDA: what the stream has got is done all the same.
  void destroy_stream(StreamHandle stream) noexcept override;
  void wait_for_stream(StreamHandle stream) override;
  bool is_capturing(StreamHandle stream) override;
  void call_host(StreamHandle stream, void (*function)(void*), void* argument) override;
  EventHandle create_event() override;
  void destroy_event(EventHandle event) noexcept override;
  void record(EventHandle event, StreamHandle stream) override;
  void wait(StreamHandle stream, EventHandle event) override;
  bool is_done(EventHandle event) override;
  void wait_for_event(EventHandle event) override;
  void copy_to_device(std::byte* to, const std::byte* from, size_t bytes,
                      StreamHandle stream) override;
  void copy_to_host(std::byte* to, const std::byte* from, size_t bytes,
                    StreamHandle stream) override;
  void fill(std::byte* to, unsigned char value, size_t bytes, StreamHandle stream) override;
  void launch(const PackLaunch& launch, StreamHandle stream) override;
  void launch(const MixLaunch& launch, StreamHandle stream) override;

 private:
  struct Event {
    uint64_t recorded = 0;
    std::set<uint64_t> pending;  // records not reached; a wait means the one before it
    bool is_done() const { return !pending.contains(recorded); }
  };
  struct Work {
    std::string name;
    std::function<void()> run;
    EventHandle awaited = 0;  // else 0
    uint64_t generation = 0;
    std::function<bool()> gate = {};
  };

  void count(const std::string& call);
  void drop_if_over(StreamHandle stream);
  bool can_step(const std::deque<Work>& stream) const;
  std::vector<StreamHandle> runnable() const;
  template <class Reached>
  void run_until(Reached reached);

  mutable std::recursive_mutex mutex_;
  std::map<StreamHandle, std::deque<Work>> streams_;
  std::map<EventHandle, Event> events_;
  std::map<std::byte*, std::pair<size_t, int>> device_memory_;
  std::map<std::byte*, size_t> pinned_memory_;
  std::set<StreamHandle> capturing_;
  std::set<StreamHandle> held_;
  std::set<StreamHandle> destroyed_;  // with work left
  std::map<std::thread::id, int> current_;
  std::map<std::string, int> calls_;
  std::vector<std::string> done_;
  std::string failing_;
  bool host_functions_at_once_ = false;
  uint64_t next_handle_ = 1;
  int place_ = 0;
};

}  // namespace crossover
