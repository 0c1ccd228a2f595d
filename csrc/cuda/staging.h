// Messages between device memory and a transport of the host, through pinned memory.
//
// Two chunks per message: while one moves between device and pinned memory, the other moves between
// pinned memory and the transport's window. A chunk whose copy is under way makes produce() or
// consume() give or take nothing, and wakes the progress thread when it is done.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

#include "core/device.h"
#include "cuda/kernels.h"
#include "cuda/pool.h"
#include "cuda/resources.h"

namespace crossover {

inline constexpr size_t kStagingChunkBytes = size_t{2} << 20;

/// Device memory with the two events that order its users.
class CudaBuffer final : public DeviceBuffer {
 public:
  CudaBuffer(CudaRuntime& runtime, size_t bytes)
      : memory_(runtime, CudaMemoryKind::kDevice, bytes), written_(runtime), read_(runtime) {}
  ~CudaBuffer() override {
    written_.settle();
    read_.settle();
  }

  std::byte* data() override { return memory_.data(); }
  size_t size_bytes() const override { return memory_.size_bytes(); }
  /// Recorded after what wrote the buffer last.
  CudaEvent& written() { return written_; }
  /// Recorded after what read the buffer last.
  CudaEvent& read() { return read_; }

 private:
  CudaMemory memory_;
  CudaEvent written_;
  CudaEvent read_;
};

struct PinnedChunk {
  explicit PinnedChunk(CudaRuntime& runtime)
      : memory(runtime, CudaMemoryKind::kPinned, kStagingChunkBytes), copied(runtime) {}
  ~PinnedChunk() { copied.settle(); }
  PinnedChunk(const PinnedChunk&) = delete;
  PinnedChunk& operator=(const PinnedChunk&) = delete;

  CudaMemory memory;
  CudaEvent copied;         // the last copy from or to it
  bool wake_asked = false;  // for that copy
};

/// Wakes the progress thread when a copy is done.
class CopyWaker {
 public:
  explicit CopyWaker(CudaRuntime& runtime) : runtime_(runtime), stream_(runtime) {}
  ~CopyWaker();
  CopyWaker(const CopyWaker&) = delete;
  CopyWaker& operator=(const CopyWaker&) = delete;

  void set(std::function<void()> wake);
  /// Once per copy, however often it is asked.
  void ask(PinnedChunk& chunk);

 private:
  static void on_copied(void* self);

  CudaRuntime& runtime_;
  CudaStream stream_;
  std::mutex mutex_;
  std::function<void()> wake_;  // guarded by mutex_
};

/// What the sources and sinks of a device share.
struct Staging {
  explicit Staging(std::shared_ptr<CudaRuntime> owner)
      : runtime(owner), out(*runtime), in(*runtime), waker(*runtime), chunks(owner) {}

  std::shared_ptr<PinnedChunk> take_chunk();

  const std::shared_ptr<CudaRuntime> runtime;
  CudaStream out;  // device to host
  CudaStream in;   // host to device
  CopyWaker waker;
  Pool<PinnedChunk> chunks;
};

/// A packed message on its way to the host. Progress thread.
class OutboundCopy {
 public:
  /// `packed` is recorded after the packing of `buffer`; all outlive this.
  OutboundCopy(Staging& staging, CudaBuffer& buffer, CudaEvent& packed, size_t num_bytes);

  /// Starts what can be started; true if bytes are there to be taken.
  bool ready();
  /// After ready(): copies at most `out.size()` bytes, at least one, and returns how many.
  size_t take(std::span<std::byte> out);
  bool finished() const { return given_bytes_ == num_bytes_; }
  /// Wakes the progress thread when ready() will be true.
  void ask_to_be_woken();

 private:
  void fetch();
  PinnedChunk& front() { return *chunks_[given_bytes_ / kStagingChunkBytes % chunks_.size()]; }

  Staging& staging_;
  CudaBuffer& buffer_;
  CudaEvent& packed_;
  const size_t num_bytes_;
  std::array<std::shared_ptr<PinnedChunk>, 2> chunks_;
  size_t fetched_bytes_ = 0;  // their copies have been started
  size_t given_bytes_ = 0;
};

/// A message on its way from the host. Progress thread.
class InboundCopy {
 public:
  /// Fills the first `num_bytes` of `buffer`; all outlive this.
  InboundCopy(Staging& staging, CudaBuffer& buffer, size_t num_bytes);

  /// As MessageSink::consume().
  size_t consume(std::span<const std::byte> in);

 private:
  bool chunk_is_free();
  void send_chunk();

  Staging& staging_;
  CudaBuffer& buffer_;
  const size_t num_bytes_;
  std::array<std::shared_ptr<PinnedChunk>, 2> chunks_;
  size_t taken_bytes_ = 0;
  size_t sent_bytes_ = 0;  // their copies have been started
};

}  // namespace crossover
