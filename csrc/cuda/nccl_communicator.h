// One NCCL communicator that never blocks its caller, not even in its end.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "cuda/nccl_library.h"
#include "cuda/stream_events.h"

namespace crossover {

struct NcclCommunicatorConfig {
  int rank = 0;
  int size = 1;
  nccl::UniqueId id{};
  int max_ctas = 2;  // blocks of a kernel; on NVLink each brings 12 MiB of buffers per peer
  double end_timeout_s = 5.0;  // how long the destructor waits for NCCL to let go
};

/// One message of a group, in device memory.
struct NcclTransfer {
  bool is_send = false;
  int peer = 0;
  std::byte* data = nullptr;  // a send only reads it
  size_t num_bytes = 0;
};

/// Progress thread only. Every call may leave work behind in NCCL; while busy() is true no other
/// call but abort() is allowed, and nothing may be enqueued that depends on the last one.
///
/// Right:  start(); while (busy()) ...; launch(group); while (busy()) ...; mark = events.record()
/// Wrong:  launch(a); launch(b) without busy() between; a mark while busy(): it misses the group.
class NcclCommunicator {
 public:
  NcclCommunicator(const NcclCommunicatorConfig& config, std::shared_ptr<const NcclLibrary> library,
                   std::shared_ptr<StreamEvents> events);
  /// Destroys or aborts what still stands; at most `end_timeout_s`, then it is left behind.
  ~NcclCommunicator();
  NcclCommunicator(const NcclCommunicator&) = delete;
  NcclCommunicator& operator=(const NcclCommunicator&) = delete;

  /// Begins to connect with the other ranks of config.id.
  void start();
  /// Starts one group: its transfers progress together. Throws TransportError.
  void launch(std::span<const NcclTransfer> group, const std::string& what);
  /// Begins an orderly end: lets what this rank has sent leave. No launch afterwards.
  void finalize();
  /// Whether the last call is still at work. Throws TransportError on an error of that call or of
  /// anything launched before.
  bool busy();
  /// What busy() waits for, for messages: "ncclGroupEnd of plan 0, round 3, segment 1, phase 0".
  const std::string& current_call() const { return call_; }

  /// Stops all that runs, kernels included, from a thread of its own, and returns at once. The
  /// communicator is then gone; calls other than the destructor and abort() are wrong.
  void abort();
  bool standing() const { return communicator_ != nullptr; }
  /// Keeps memory that a kernel may still use until the end is over; replaces what was kept.
  void keep(std::shared_ptr<void> memory) { kept_ = std::move(memory); }

 private:
  struct Ending;

  void end(bool abort);
  void require(nccl::Result result, const std::string& what) const;

  const NcclCommunicatorConfig config_;
  const std::shared_ptr<const NcclLibrary> library_;
  const std::shared_ptr<StreamEvents> events_;
  nccl::Communicator* communicator_ = nullptr;
  nccl::Config nccl_config_;
  std::string call_;
  bool busy_ = false;
  bool finalized_ = false;
  std::shared_ptr<void> kept_;
  std::shared_ptr<Ending> ending_;
};

}  // namespace crossover
