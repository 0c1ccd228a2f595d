// Moves messages between this rank and its peers. Every transport passes tests/cpp/transport_suite.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/message.h"
#include "core/poller.h"

namespace crossover {

/// Why a rank stops, told to the others.
struct Farewell {
  bool failed = false;  // false: an orderly shutdown
  int origin = -1;      // the rank that first saw the cause
  std::string cause;    // one line of text; empty when orderly
};

struct TransportEvent {
  enum class Kind {
    kSent,      // `token`: the source has been read to its end
    kReceived,  // `token`: the sink has been filled
    kPeerLeft,  // `peer` said farewell; nothing more will come from it
    kPeerLost,  // `peer` is gone or garbled without a farewell; `farewell.cause` says how
  };
  Kind kind = Kind::kSent;
  uint64_t token = 0;
  int peer = -1;
  Farewell farewell;
};

/// Bytes since the start, this rank's view.
struct TransportCounters {
  uint64_t payload_sent_bytes = 0;
  uint64_t payload_received_bytes = 0;
  uint64_t wire_sent_bytes = 0;  // headers and control frames included
  uint64_t wire_received_bytes = 0;
  uint64_t messages_sent = 0;
  uint64_t messages_received = 0;
  double first_contact_s = 0.0;  // from the first progress() until all links stood; 0: given ones
};

/// A message moves when both ends have named its tag: a transport never sends bytes that have no
/// room at the other end. All calls come from one thread, the progress thread, except where said.
///
/// Right:  b.receive(a, tag, sink, 1); a.send(b, tag, source, 2); then both progress() until the
///         events kReceived(1) at b and kSent(2) at a.
/// Wrong:  reuse of a tag between the same two ranks, or destroying a sink before its event.
class Transport {
 public:
  virtual ~Transport() = default;

  /// Whether a source's `weight` reaches the sink.
  virtual bool carries_weights() const { return false; }

  /// Expects the message `tag` from `peer` and announces the room for it.
  virtual void receive(int peer, const MessageTag& tag, MessageSink& sink, uint64_t token) = 0;

  /// Sends the message `tag` to `peer` once the peer has announced room for it.
  virtual void send(int peer, const MessageTag& tag, MessageSource& source, uint64_t token) = 0;

  /// All sends of this rank for `tag` have been given, perhaps none; its receives were given
  /// before. Called in the order of posting, which is the same on every rank, and for each phase
  /// in turn; the phases of one segment end with `last`. For transports that must launch in an
  /// order that every rank derives alike.
  virtual void phase_posted(const MessageTag& /*tag*/, bool /*last*/) {}

  /// Drops all sends and receives of a plan; frames that still come for it are discarded.
  virtual void forget_plan(uint32_t plan) = 0;

  /// Moves whatever can move without blocking, checks the liveness deadlines at `now_s`, appends
  /// what happened. Returns true if anything moved. What a MessageSource throws passes through.
  virtual bool progress(double now_s, std::vector<TransportEvent>& events) = 0;

  /// Called before sleeping: lists what to poll and arms wake-ups. False if there is something to
  /// do already. `max_sleep_s` is lowered to the next moment that progress() is needed by time.
  virtual bool prepare_to_sleep(double now_s, std::vector<PollItem>& items,
                                double& max_sleep_s) = 0;

  /// Tells every peer, after all messages already under way to it; nothing can be sent after it.
  virtual void say_farewell(const Farewell& farewell) = 0;

  /// True once every farewell and all bytes before it have left this rank and, where the medium
  /// can tell, have reached the peer.
  virtual bool drained() = 0;

  virtual TransportCounters counters() const = 0;
};

/// Makes a transport over another one, which it then owns.
struct TransportLayer {
  std::function<std::unique_ptr<Transport>(std::unique_ptr<Transport>)> make;
  bool carries_weights = false;  // as the transport that it makes
};

}  // namespace crossover
