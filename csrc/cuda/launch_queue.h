// The order in which groups are launched: one that every rank derives alike.
//
// Kernels of a communicator run one after the other, so a rank that launched b before a, where its
// peers launch a before b, waits for ever. Segments take turns in the order of posting, which is
// the order of the training program and so the same everywhere; the phases of a segment follow each
// other; a turn ends when its last phase is launched. A rank without messages in a phase skips it.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "core/message.h"

namespace crossover {

/// One message of this rank, until it is launched.
struct QueuedTransfer {
  MessageTag tag;
  int peer = -1;
  MessageSource* source = nullptr;  // of a send, else null
  MessageSink* sink = nullptr;      // of a receive, else null
  uint64_t token = 0;
  bool agreed = false;  // the peer has posted the phase, too

  bool is_send() const { return source != nullptr; }
  size_t num_bytes() const { return is_send() ? source->num_bytes() : sink->num_bytes(); }
};

class LaunchQueue {
 public:
  /// Returns the transfer's id.
  uint64_t add(const QueuedTransfer& transfer);
  /// All transfers of `tag` have been added; returns their ids.
  std::vector<uint64_t> post(const MessageTag& tag, bool last);
  /// The peer has posted the phase of this transfer, too. An id that is forgotten is ignored.
  void agree(uint64_t id);

  const QueuedTransfer& transfer(uint64_t id) const { return transfers_.at(id); }
  /// Whether take() would return a group.
  bool launchable() const;
  /// The next group: all transfers of one phase, never none. Empty while the phase whose turn it is
  /// has not been posted, or not been agreed on by all its peers.
  std::vector<QueuedTransfer> take();
  /// Drops what is not launched; turns of other plans go on.
  void forget_plan(uint32_t plan);
  /// Whether a posted transfer that is agreed on with `peer` waits for its launch.
  bool awaits(int peer) const;

 private:
  struct Phase {
    MessageTag tag;
    std::vector<uint64_t> ids;
  };
  struct Turn {
    std::deque<Phase> phases;  // posted and not launched
    bool complete = false;     // the last phase has been posted
  };

  static bool same_turn(const MessageTag& a, const MessageTag& b);
  void skip_idle();
  bool agreed(const Phase& phase) const;

  std::map<uint64_t, QueuedTransfer> transfers_;
  std::map<MessageTag, std::vector<uint64_t>> unposted_;
  std::deque<std::pair<MessageTag, Turn>> turns_;
  uint64_t next_id_ = 0;
};

}  // namespace crossover
