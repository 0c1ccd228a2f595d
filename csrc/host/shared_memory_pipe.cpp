#include "host/shared_memory_pipe.h"

#include <poll.h>

#include <utility>

#include "core/error.h"
#include "host/event_fd.h"
#include "host/mapped_memory.h"
#include "host/shared_memory_channel.h"
#include "host/watched_process.h"

// Why no wake-up is lost. The sleeper stores `asleep_for`, then loads the peer's counters again and
// sleeps only if they have not changed. The waker stores its counter, then loads `asleep_for` and
// signals if the bit is set. All four accesses are sequentially consistent, hence in one total
// order: if the waker's load misses the bit, it comes before the sleeper's store, so the waker's
// store comes before the sleeper's second load, which sees it. Whoever clears the bit signals after
// that, and a signal stays in the eventfd until the sleeper is awake and takes it; a signal that
// comes late only ends the next sleep early.

namespace crossover {
namespace {

// A dead peer is noticed after a sleep; whoever never sleeps looks every so many vain fills.
constexpr unsigned kVainFillsPerLook = 256;

class SharedMemoryPipe final : public Pipe {
 public:
  SharedMemoryPipe(SharedMemoryChannel channel, int side, WatchedProcess process,
                   std::string description, size_t ring_bytes);
  ~SharedMemoryPipe() override;

  std::span<std::byte> write_window() override;
  void commit(size_t num_bytes) override;
  bool flush() override;
  bool drained() const override;
  void finish_writing() override;

  bool fill() override;
  std::span<const std::byte> read_window() override {
    return in_ring_.at(released_bytes_, arrived_bytes_ - released_bytes_);
  }
  void release(size_t num_bytes) override;
  size_t min_capacity() const override { return in_ring_.num_bytes(); }

  bool ended() const override { return ended_; }
  std::string end_reason() const override { return end_reason_; }
  bool prepare_to_sleep(bool want_write, std::vector<PollItem>& items) override;
  std::string describe() const override { return description_; }

 private:
  void take_room();
  void wake_peer(uint32_t reasons);
  void disarm();
  void look_at_state();
  void lose_peer(std::string reason);
  void lose_corrupt_peer(const char* counter, uint64_t value);

  const std::string description_;
  const EventFd own_wake_;
  const EventFd peer_wake_;
  const WatchedProcess process_;

  const MappedMemory control_;
  const MirroredRing out_ring_;
  const MirroredRing in_ring_;
  SharedSide& own_;
  SharedSide& peer_;

  // The truth about this side is kept here: what the peer scribbles over `own_` harms only itself.
  uint64_t committed_bytes_ = 0;
  uint64_t published_bytes_ = 0;  // committed and shown to the peer
  uint64_t peer_read_bytes_ = 0;  // as last seen
  uint64_t arrived_bytes_ = 0;    // shown by the peer, as last seen
  uint64_t released_bytes_ = 0;

  SideState own_state_ = SideState::kOpen;
  bool drained_is_told_ = false;  // so that one prepare_to_sleep() refuses, and not each
  bool armed_ = false;
  unsigned vain_fills_ = 0;
  bool peer_gone_ = false;  // dead, closed or corrupt: nothing can reach it
  bool peer_finished_ = false;
  bool ended_ = false;  // set by fill() alone, once what the peer left has arrived
  std::string end_reason_ = "connection closed";
};

SharedMemoryPipe::SharedMemoryPipe(SharedMemoryChannel channel, int side, WatchedProcess process,
                                   std::string description, size_t ring_bytes)
    : description_(std::move(description)),
      own_wake_(std::move(side == 0 ? channel.wake_0 : channel.wake_1)),
      peer_wake_(std::move(side == 0 ? channel.wake_1 : channel.wake_0)),
      process_(std::move(process)),
      control_(channel.memory.get(), 0, page_bytes()),
      out_ring_(channel.memory.get(), page_bytes() + side * ring_bytes, ring_bytes),
      in_ring_(channel.memory.get(), page_bytes() + (1 - side) * ring_bytes, ring_bytes),
      own_(reinterpret_cast<ControlPage*>(control_.data())->sides[side]),
      peer_(reinterpret_cast<ControlPage*>(control_.data())->sides[1 - side]) {}

SharedMemoryPipe::~SharedMemoryPipe() {
  if (!control_.accessible()) return;
  own_.state.store(SideState::kClosed);
  wake_peer(kForBytes | kForRoom | kForEmpty);
}

std::span<std::byte> SharedMemoryPipe::write_window() {
  take_room();
  const size_t room = out_ring_.num_bytes() - (committed_bytes_ - peer_read_bytes_);
  const bool open = own_state_ == SideState::kOpen && !peer_gone_;
  if (!open || room < out_ring_.num_bytes() / 4) return {};
  return out_ring_.at(committed_bytes_, room);
}

void SharedMemoryPipe::take_room() {
  const uint64_t read = peer_.read_bytes.load();
  if (read - peer_read_bytes_ > published_bytes_ - peer_read_bytes_) {
    lose_corrupt_peer("read", read);
  } else {
    peer_read_bytes_ = read;
  }
}

void SharedMemoryPipe::commit(size_t num_bytes) {
  check(num_bytes <= out_ring_.num_bytes() - (committed_bytes_ - peer_read_bytes_),
        "commit within the write window");
  committed_bytes_ += num_bytes;
}

bool SharedMemoryPipe::flush() {
  if (armed_) disarm();
  if (committed_bytes_ == published_bytes_ || peer_gone_) return false;
  published_bytes_ = committed_bytes_;
  own_.written_bytes.store(published_bytes_);
  wake_peer(kForBytes);
  return true;
}

bool SharedMemoryPipe::drained() const {
  return peer_gone_ || peer_.read_bytes.load() == committed_bytes_;
}

void SharedMemoryPipe::finish_writing() {
  if (own_state_ != SideState::kOpen) return;
  flush();
  own_state_ = SideState::kFinished;
  own_.state.store(own_state_);
  wake_peer(kForBytes);
}

// Whether the peer is done is looked at before its counter, which is therefore its last.
bool SharedMemoryPipe::fill() {
  if (armed_) disarm();
  look_at_state();
  if (ended_) return false;
  const bool is_last = peer_finished_ || peer_gone_;
  const uint64_t written = peer_.written_bytes.load();
  if (written - arrived_bytes_ > in_ring_.num_bytes() - (arrived_bytes_ - released_bytes_)) {
    lose_corrupt_peer("written", written);
    ended_ = true;
    return true;
  }
  const bool grew = written != arrived_bytes_;
  arrived_bytes_ = written;
  ended_ = is_last;
  if (!grew && ++vain_fills_ % kVainFillsPerLook == 0 && process_.has_ended()) {
    lose_peer(process_.name() + " ended");
  }
  return grew || ended_;
}

void SharedMemoryPipe::look_at_state() {
  const SideState state = peer_.state.load();
  if (state == SideState::kOpen) return;
  peer_finished_ = true;
  if (state != SideState::kFinished) peer_gone_ = true;
}

void SharedMemoryPipe::lose_peer(std::string reason) {
  if (!peer_gone_ && !peer_finished_) end_reason_ = std::move(reason);
  peer_gone_ = true;
}

void SharedMemoryPipe::lose_corrupt_peer(const char* counter, uint64_t value) {
  lose_peer("shared memory is corrupt: the peer cannot have " + std::string(counter) + " " +
            std::to_string(value) + " bytes");
}

void SharedMemoryPipe::release(size_t num_bytes) {
  check(num_bytes <= arrived_bytes_ - released_bytes_, "release within the read window");
  released_bytes_ += num_bytes;
  own_.read_bytes.store(released_bytes_);
  // Bytes that have arrived meanwhile are not counted: at worst the peer is woken in vain.
  const size_t unread = arrived_bytes_ - released_bytes_;
  const bool has_window = in_ring_.num_bytes() - unread >= in_ring_.num_bytes() / 4;
  wake_peer((has_window ? kForRoom : 0) | (unread == 0 ? kForEmpty : 0));
}

void SharedMemoryPipe::wake_peer(uint32_t reasons) {
  if ((peer_.asleep_for.load() & reasons) == 0) return;
  peer_.asleep_for.store(0);
  peer_wake_.signal();
}

void SharedMemoryPipe::disarm() {
  armed_ = false;
  own_.asleep_for.store(0);
  pollfd polled[] = {{.fd = own_wake_.get(), .events = POLLIN, .revents = 0},
                     {.fd = process_.get(), .events = POLLIN, .revents = 0}};
  ::poll(polled, 2, 0);
  if (polled[0].revents != 0) own_wake_.drain();
  if (polled[1].revents != 0) lose_peer(process_.name() + " ended");
}

bool SharedMemoryPipe::prepare_to_sleep(bool want_write, std::vector<PollItem>& items) {
  flush();
  const bool wants_end = own_state_ == SideState::kFinished && !drained_is_told_;
  own_.asleep_for.store(kForBytes | (want_write ? kForRoom : 0) | (wants_end ? kForEmpty : 0));
  armed_ = true;
  if (want_write && !write_window().empty()) return false;
  if (wants_end && drained()) {
    drained_is_told_ = true;
    return false;
  }
  const SideState state = peer_.state.load();
  const bool gone = peer_gone_ || (state != SideState::kOpen && state != SideState::kFinished);
  if (!ended_) {
    if (gone || state != SideState::kOpen || peer_.written_bytes.load() != arrived_bytes_) {
      return false;
    }
  } else if (gone) {
    return true;
  }
  items.push_back({.fd = own_wake_.get()});
  items.push_back({.fd = process_.get()});
  return true;
}

}  // namespace

std::unique_ptr<Pipe> shared_memory_pipe(SharedMemoryChannel channel, int side, UniqueFd process,
                                         std::string label) {
  check(side == 0 || side == 1, "a channel has sides 0 and 1");
  const size_t ring_bytes = checked_ring_bytes(channel.memory.get(), label);
  return std::make_unique<SharedMemoryPipe>(std::move(channel), side,
                                            WatchedProcess(std::move(process)),
                                            "shared memory with " + label, ring_bytes);
}

}  // namespace crossover
