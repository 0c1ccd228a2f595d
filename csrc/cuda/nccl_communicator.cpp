#include "cuda/nccl_communicator.h"

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "core/error.h"

namespace crossover {

struct NcclCommunicator::Ending {
  std::mutex mutex;
  std::condition_variable changed;
  bool over = false;
};

NcclCommunicator::NcclCommunicator(const NcclCommunicatorConfig& config,
                                   std::shared_ptr<const NcclLibrary> library,
                                   std::shared_ptr<StreamEvents> events)
    : config_(config), library_(std::move(library)), events_(std::move(events)) {
  nccl_config_.blocking = 0;
  nccl_config_.max_ctas = config_.max_ctas;
}

NcclCommunicator::~NcclCommunicator() {
  if (communicator_) end(!finalized_ || busy_);
  if (!ending_) return;
  std::unique_lock lock(ending_->mutex);
  ending_->changed.wait_for(lock, std::chrono::duration<double>(config_.end_timeout_s),
                            [this] { return ending_->over; });
}

void NcclCommunicator::require(nccl::Result result, const std::string& what) const {
  library_->check_result(result, "rank " + std::to_string(config_.rank) + ": NCCL: " + what,
                         communicator_);
}

void NcclCommunicator::start() {
  check(!communicator_ && !ending_, "a communicator is started once");
  call_ = "ncclCommInitRankConfig";
  const nccl::Result result = library_->functions().ncclCommInitRankConfig(
      &communicator_, config_.size, config_.id, config_.rank, &nccl_config_);
  require(result, call_);
  busy_ = true;
}

void NcclCommunicator::launch(std::span<const NcclTransfer> group, const std::string& what) {
  check(communicator_ && !busy_ && !finalized_, "a group follows the end of the call before it");
  const nccl::Functions& nccl = library_->functions();
  const auto stream = reinterpret_cast<nccl::Stream>(events_->stream());
  call_ = "ncclGroupEnd of " + what;
  require(nccl.ncclGroupStart(), "ncclGroupStart of " + what);
  nccl::Result first = nccl::kSuccess;
  for (const NcclTransfer& transfer : group) {
    const nccl::Result result = transfer.is_send
                                    ? nccl.ncclSend(transfer.data, transfer.num_bytes, nccl::kInt8,
                                                    transfer.peer, communicator_, stream)
                                    : nccl.ncclRecv(transfer.data, transfer.num_bytes, nccl::kInt8,
                                                    transfer.peer, communicator_, stream);
    if (first == nccl::kSuccess) first = result;
  }
  const nccl::Result ended = nccl.ncclGroupEnd();  // also after an error: the group must be closed
  require(first, "ncclSend or ncclRecv of " + what);
  require(ended, call_);
  busy_ = true;
}

void NcclCommunicator::finalize() {
  check(communicator_ && !busy_, "a communicator at rest is finalized");
  call_ = "ncclCommFinalize";
  require(library_->functions().ncclCommFinalize(communicator_), call_);
  finalized_ = true;
  busy_ = true;
}

bool NcclCommunicator::busy() {
  if (!communicator_) return false;
  nccl::Result error = nccl::kSuccess;
  const nccl::Result asked = library_->functions().ncclCommGetAsyncError(communicator_, &error);
  require(asked, "ncclCommGetAsyncError");
  require(error, "after " + call_);
  busy_ = error == nccl::kInProgress;
  return busy_;
}

void NcclCommunicator::abort() {
  if (communicator_) end(true);
}

// NCCL may block in here for ever, so a thread of its own does it. The thread owns all it touches
// and is left behind if it does not return.
void NcclCommunicator::end(bool abort) {
  ending_ = std::make_shared<Ending>();
  std::thread([ending = ending_, library = library_, events = events_, kept = std::move(kept_),
               abort, communicator = std::exchange(communicator_, nullptr)]() mutable {
    try {
      events->make_current();
    } catch (const CrossoverError&) {
      // The device failed; the communicator is ended all the same.
    }
    if (abort) {
      library->functions().ncclCommAbort(communicator);
    } else {
      library->functions().ncclCommDestroy(communicator);
    }
    kept.reset();
    const std::lock_guard lock(ending->mutex);
    ending->over = true;
    ending->changed.notify_all();
  }).detach();
}

}  // namespace crossover
