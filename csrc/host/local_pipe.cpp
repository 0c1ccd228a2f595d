#include "host/local_pipe.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <mutex>
#include <random>
#include <string>
#include <utility>

#include "core/error.h"
#include "host/event_fd.h"
#include "host/mapped_memory.h"

// Why no wake-up is lost: a sleeper sets `asleep`, then takes a stream's mutex and looks; a waker
// changes the stream under that mutex, then looks at `asleep`. Whichever section comes second sees
// what the other did before.

namespace crossover {
namespace {

struct Rank {
  EventFd wake;
  std::atomic<bool> asleep{false};
  std::atomic<bool> killed{false};
  std::atomic<bool> frozen{false};
  bool armed = false;  // the rank's own thread only

  void rouse() {
    if (asleep.exchange(false)) wake.signal();
  }
  void disarm() {
    if (!armed) return;
    armed = false;
    asleep = false;
    wake.drain();
  }
};

/// Bytes on their way from one rank to another. The ring's bytes between `published` and
/// `committed` belong to the writer, those between `released` and `published` to the reader.
struct Stream {
  explicit Stream(size_t ring_bytes) : ring(ring_bytes) {}

  MirroredRing ring;
  std::mutex mutex;  // guards what follows
  uint64_t committed = 0;
  uint64_t published = 0;
  uint64_t released = 0;
  bool window_is_open = false;  // the writer may be writing behind `committed`
  bool wants_room = false;
  bool is_finished = false;
  bool reader_is_gone = false;
  std::vector<unsigned char> injected;

  size_t room() const { return ring.num_bytes() - (committed - released); }
  bool has_window() const { return room() >= ring.num_bytes() / 4; }
  bool is_drained() const { return reader_is_gone || released == committed; }
  void insert_injected() {
    const size_t count = std::min(injected.size(), room());
    if (count == 0) return;
    std::memcpy(ring.at(committed, count).data(), injected.data(), count);
    injected.erase(injected.begin(), injected.begin() + static_cast<ptrdiff_t>(count));
    committed += count;
    published = committed;
  }
};

}  // namespace

struct LocalNetwork::State {
  State(int size, size_t ring_bytes, const LocalFaults& faults) : faults(faults), ranks(size) {
    for (int k = 0; k < size * size; ++k) {
      const bool to_itself = k / size == k % size;
      streams.push_back(to_itself ? nullptr : std::make_unique<Stream>(ring_bytes));
    }
  }
  Stream& stream(int from, int to) { return *streams.at(from * ranks.size() + to); }
  void rouse_all() {
    for (Rank& rank : ranks) rank.rouse();
  }

  const LocalFaults faults;
  std::vector<Rank> ranks;
  std::vector<std::unique_ptr<Stream>> streams;  // from * size + to
  std::mutex taken_mutex;
  std::vector<bool> taken = std::vector<bool>(ranks.size());
};

namespace {

struct Ends {
  Rank& own;
  Rank& peer;
  Stream& out;
  Stream& in;
};

class LocalPipe final : public Pipe {
 public:
  LocalPipe(std::shared_ptr<void> owner, const Ends& ends, const LocalFaults& faults, int rank,
            int peer);
  ~LocalPipe() override;

  std::span<std::byte> write_window() override;
  void commit(size_t num_bytes) override;
  bool flush() override;
  bool drained() const override;
  void finish_writing() override;

  bool fill() override;
  std::span<const std::byte> read_window() override {
    return in_.ring.at(released_, arrived_ - released_);
  }
  void release(size_t num_bytes) override;
  size_t min_capacity() const override { return in_.ring.num_bytes(); }

  bool ended() const override { return ended_; }
  std::string end_reason() const override { return end_reason_; }
  bool prepare_to_sleep(bool want_write, std::vector<PollItem>& items) override;
  std::string describe() const override { return "local pipe to " + peer_name_; }

 private:
  bool can_write() const { return !out_.is_finished && !out_.reader_is_gone && !is_cut(); }
  bool is_cut() const { return own_.killed || peer_.killed; }
  bool is_frozen() const { return own_.frozen || peer_.frozen; }
  bool is_last() const { return in_.is_finished || is_cut(); }
  bool is_delayed() { return generator_() < delay_threshold_; }

  const std::shared_ptr<void> owner_;  // keeps what the references name
  Rank& own_;
  Rank& peer_;
  Stream& out_;
  Stream& in_;
  const std::string own_name_;
  const std::string peer_name_;
  const size_t max_fill_bytes_;
  const uint64_t delay_threshold_;
  std::mt19937_64 generator_;
  uint64_t arrived_ = 0;
  uint64_t released_ = 0;
  bool drained_is_told_ = false;  // so that one prepare_to_sleep() refuses, and not each
  bool ended_ = false;
  std::string end_reason_;
};

uint64_t threshold_of(double probability) {
  constexpr uint64_t kAll = std::numeric_limits<uint64_t>::max();
  if (probability >= 1.0) return kAll;
  return static_cast<uint64_t>(std::max(probability, 0.0) * 0x1p64);
}

std::mt19937_64 seeded_generator(uint64_t seed, int rank, int peer) {
  std::seed_seq words{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                      static_cast<uint32_t>(rank), static_cast<uint32_t>(peer)};
  return std::mt19937_64(words);
}

LocalPipe::LocalPipe(std::shared_ptr<void> owner, const Ends& ends, const LocalFaults& faults,
                     int rank, int peer)
    : owner_(std::move(owner)),
      own_(ends.own),
      peer_(ends.peer),
      out_(ends.out),
      in_(ends.in),
      own_name_("rank " + std::to_string(rank)),
      peer_name_("rank " + std::to_string(peer)),
      max_fill_bytes_(faults.max_fill_bytes == 0 ? ends.in.ring.num_bytes()
                                                 : faults.max_fill_bytes),
      delay_threshold_(threshold_of(faults.delay_probability)),
      generator_(seeded_generator(faults.seed, rank, peer)) {}

// In a forked child the mutexes may be held by threads that are not there.
LocalPipe::~LocalPipe() {
  if (own_.wake.get() < 0) return;
  {
    std::scoped_lock lock(out_.mutex);
    out_.is_finished = true;
  }
  {
    std::scoped_lock lock(in_.mutex);
    in_.reader_is_gone = true;
  }
  peer_.rouse();
}

std::span<std::byte> LocalPipe::write_window() {
  std::scoped_lock lock(out_.mutex);
  if (!can_write() || !out_.has_window()) return {};
  out_.window_is_open = true;
  return out_.ring.at(out_.committed, out_.room());
}

void LocalPipe::commit(size_t num_bytes) {
  std::scoped_lock lock(out_.mutex);
  check(num_bytes <= out_.room(), "commit within the write window");
  out_.committed += num_bytes;
  out_.window_is_open = false;
}

bool LocalPipe::flush() {
  own_.disarm();
  {
    std::scoped_lock lock(out_.mutex);
    out_.window_is_open = false;
    if (is_cut() || own_.frozen) return false;
    out_.insert_injected();
    if (out_.published == out_.committed) return false;
    out_.published = out_.committed;
  }
  peer_.rouse();
  return true;
}

bool LocalPipe::drained() const {
  std::scoped_lock lock(out_.mutex);
  return out_.is_drained() || is_cut();
}

void LocalPipe::finish_writing() {
  flush();
  {
    std::scoped_lock lock(out_.mutex);
    out_.is_finished = true;
  }
  peer_.rouse();
}

bool LocalPipe::fill() {
  own_.disarm();
  std::scoped_lock lock(in_.mutex);
  const bool is_last_fill = is_last();
  if (ended_ || is_frozen()) return false;
  const size_t waiting = own_.killed ? 0 : in_.published - arrived_;
  if (waiting > 0 && is_delayed()) return false;
  arrived_ += std::min(waiting, max_fill_bytes_);
  if (is_last_fill && waiting <= max_fill_bytes_) {
    ended_ = true;
    end_reason_ = own_.killed    ? own_name_ + " was killed"
                  : peer_.killed ? peer_name_ + " was killed"
                                 : "connection closed";
  }
  return waiting > 0 || ended_;
}

void LocalPipe::release(size_t num_bytes) {
  check(num_bytes <= arrived_ - released_, "release within the read window");
  released_ += num_bytes;
  bool writer_waits = false;
  {
    std::scoped_lock lock(in_.mutex);
    in_.released = released_;
    writer_waits = (in_.wants_room && in_.has_window()) || (in_.is_finished && in_.is_drained());
    if (writer_waits) in_.wants_room = false;
  }
  if (writer_waits) peer_.rouse();
}

bool LocalPipe::prepare_to_sleep(bool want_write, std::vector<PollItem>& items) {
  flush();
  own_.asleep = true;
  own_.armed = true;
  {
    std::scoped_lock lock(out_.mutex);
    out_.wants_room = want_write;
    if (want_write && can_write() && out_.has_window()) return false;
    if (out_.is_finished && !drained_is_told_ && (out_.is_drained() || is_cut())) {
      drained_is_told_ = true;
      return false;
    }
  }
  {
    std::scoped_lock lock(in_.mutex);
    if (!ended_ && !is_frozen() && (is_last() || in_.published != arrived_)) return false;
  }
  if (items.empty() || items.back().fd != own_.wake.get()) items.push_back({own_.wake.get()});
  return true;
}

}  // namespace

LocalNetwork::LocalNetwork(int size, size_t ring_bytes, const LocalFaults& faults) {
  if (size < 1 || !std::has_single_bit(ring_bytes) || ring_bytes < page_bytes()) {
    throw InvalidArgument("local network of " + std::to_string(size) + " ranks with rings of " +
                          std::to_string(ring_bytes) +
                          " bytes: expected a rank or more, and a power of two of at least " +
                          std::to_string(page_bytes()) + " bytes");
  }
  state_ = std::make_shared<State>(size, ring_bytes, faults);
}

LocalNetwork::~LocalNetwork() = default;

std::vector<std::unique_ptr<Pipe>> LocalNetwork::take_pipes(int rank) {
  {
    std::scoped_lock lock(state_->taken_mutex);
    check(!state_->taken.at(rank), "a rank's pipes are taken once");
    state_->taken[rank] = true;
  }
  const int size = static_cast<int>(state_->ranks.size());
  std::vector<std::unique_ptr<Pipe>> pipes(size);
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    const Ends ends{state_->ranks[rank], state_->ranks[peer], state_->stream(rank, peer),
                    state_->stream(peer, rank)};
    pipes[peer] = std::make_unique<LocalPipe>(state_, ends, state_->faults, rank, peer);
  }
  return pipes;
}

void LocalNetwork::kill(int rank) {
  state_->ranks.at(rank).frozen = false;
  state_->ranks.at(rank).killed = true;
  state_->rouse_all();
}

void LocalNetwork::freeze(int rank, bool frozen) {
  state_->ranks.at(rank).frozen = frozen;
  state_->rouse_all();
}

void LocalNetwork::inject(int from, int to, std::vector<unsigned char> bytes) {
  Stream& stream = state_->stream(from, to);
  {
    std::scoped_lock lock(stream.mutex);
    stream.injected.insert(stream.injected.end(), bytes.begin(), bytes.end());
    if (!stream.window_is_open) stream.insert_injected();
  }
  state_->ranks.at(from).rouse();
  state_->ranks.at(to).rouse();
}

}  // namespace crossover
