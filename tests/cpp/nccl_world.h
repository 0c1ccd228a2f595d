// Ranks of one process over the fake NCCL: host memory stands for device memory.
#pragma once

#include <dlfcn.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/stream_transport.h"
#include "cuda/nccl_library.h"
#include "cuda/nccl_transport.h"
#include "cuda/stream_events.h"
#include "fake_nccl.h"
#include "host/host_device.h"
#include "world.h"

namespace crossover::testing {

/// The fake's library and its controls; one per process.
struct FakeNccl {
  FakeNccl() {
    void* handle = dlopen(FAKE_NCCL_PATH, RTLD_NOW | RTLD_LOCAL);
    check(handle != nullptr, "the fake NCCL can be loaded");
    find(handle, "fake_nccl_script", script);
    find(handle, "fake_nccl_enqueued", enqueued);
    find(handle, "fake_nccl_completed", completed);
    find(handle, "fake_nccl_standing", standing);
  }
  template <typename Function>
  static void find(void* handle, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    check(function != nullptr, name);
  }
  std::shared_ptr<const NcclLibrary> library() const {
    return NcclLibrary::load({.override_path = FAKE_NCCL_PATH, .wheel_path = {}});
  }

  decltype(&fake_nccl_script) script = nullptr;
  decltype(&fake_nccl_enqueued) enqueued = nullptr;
  decltype(&fake_nccl_completed) completed = nullptr;
  decltype(&fake_nccl_standing) standing = nullptr;
};

inline FakeNccl& fake_nccl() {
  static FakeNccl fake;
  return fake;
}

class FakeStreamEvents final : public StreamEvents {
 public:
  FakeStreamEvents() : stream_(next_stream_++) {}
  void make_current() override { ++made_current; }
  StreamHandle stream() const override { return stream_; }
  uint64_t record() override { return fake_nccl().enqueued(stream_); }
  bool done(uint64_t mark) override { return fake_nccl().completed(stream_) >= mark; }

  std::atomic<int> made_current = 0;

 private:
  static inline std::atomic<StreamHandle> next_stream_ = 1;
  const StreamHandle stream_;
};

/// A message in "device" memory; counts its acquire() and release().
struct ResidentSource final : MessageSource {
  explicit ResidentSource(std::vector<std::byte> content) : bytes(std::move(content)) {}
  size_t num_bytes() const override { return bytes.size(); }
  size_t produce(std::span<std::byte>) override { throw std::logic_error("read by the host"); }
  const std::byte* acquire(StreamHandle) override {
    ++acquired;
    return bytes.data();
  }
  void release(StreamHandle) override { ++released; }

  std::vector<std::byte> bytes;
  int acquired = 0;
  int released = 0;
};

/// Room in "device" memory.
struct ResidentSink final : MessageSink {
  explicit ResidentSink(size_t size) : bytes(size) {}
  size_t num_bytes() const override { return bytes.size(); }
  size_t consume(std::span<const std::byte>) override {
    throw std::logic_error("written by the host");
  }
  std::byte* acquire(StreamHandle) override {
    ++acquired;
    return bytes.data();
  }
  void release(StreamHandle) override { ++released; }

  std::vector<std::byte> bytes;
  int acquired = 0;
  int released = 0;
};

/// `size` transports that a test turns by hand, control traffic over rings in memory.
class NcclWorld {
 public:
  using Kind = TransportEvent::Kind;
  using Adjust = std::function<void(NcclTransportConfig&)>;

  explicit NcclWorld(int size, const std::string& script = "", const Adjust& adjust = {},
                     double timeout_s = 30.0)
      : network(size, kDefaultRingBytes, {}) {
    fake_nccl().script(script.c_str());
    const auto library = fake_nccl().library();
    const nccl::UniqueId id = library->unique_id();
    for (int rank = 0; rank < size; ++rank) {
      NcclTransportConfig config;
      config.communicator = {rank, size, id};
      config.timeout_s = timeout_s;
      for (int peer = 0; peer < size; ++peer) {
        if (peer != rank) config.warm_peers.push_back(peer);
      }
      if (adjust) adjust(config);
      streams.push_back(std::make_shared<FakeStreamEvents>());
      ranks.push_back(std::make_unique<NcclTransport>(
          config, library, streams.back(), host_device(),
          std::make_unique<StreamTransport>(stream_config(rank, size, timeout_s),
                                            network.take_pipes(rank)),
          clock));
    }
    events.resize(size);
  }

  void turn() {
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      if (ranks[rank]) ranks[rank]->progress(clock.now_s(), events[rank]);
    }
  }
  bool turn_until(const std::function<bool()>& done) {
    for (int turns = 0; turns < 20000; ++turns) {
      if (done()) return true;
      turn();
    }
    return false;
  }
  /// Whether nothing but heartbeats makes this rank's progress() needed.
  bool asleep(int rank) {
    std::vector<PollItem> items;
    double max_sleep_s = 1e9;
    return ranks[rank]->prepare_to_sleep(clock.now_s(), items, max_sleep_s) && max_sleep_s > 0.1;
  }
  /// Turns until every rank sleeps.
  bool settle() {
    return turn_until([this] {
      for (size_t rank = 0; rank < ranks.size(); ++rank) {
        if (ranks[rank] && !asleep(static_cast<int>(rank))) return false;
      }
      return true;
    });
  }
  void post(int rank, const MessageTag& tag, bool last = true) {
    ranks[rank]->phase_posted(tag, last);
  }
  size_t count(int rank, Kind kind) const {
    size_t n = 0;
    for (const TransportEvent& event : events[rank]) n += event.kind == kind ? 1 : 0;
    return n;
  }
  const TransportEvent& last(int rank) const { return events[rank].back(); }
  /// All groups that the stream of `rank` has got are complete.
  bool quiet(int rank) const {
    const StreamHandle stream = streams[rank]->stream();
    return fake_nccl().completed(stream) == fake_nccl().enqueued(stream);
  }

  ManualClock clock;
  LocalNetwork network;
  std::vector<std::shared_ptr<FakeStreamEvents>> streams;
  std::vector<std::unique_ptr<NcclTransport>> ranks;
  std::vector<std::vector<TransportEvent>> events;
};

}  // namespace crossover::testing
