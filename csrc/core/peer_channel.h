// One peer's end of the StreamTransport protocol: which messages are expected, ready, under way.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/frame.h"
#include "core/pipe.h"
#include "core/stream_transport.h"
#include "core/transport.h"

namespace crossover {

class PeerChannel;

/// A message of which the pipe would take a frame now.
struct Departure {
  PeerChannel* channel;
  uint64_t order;  // its place among the posts to all peers
  double share;    // of its bytes that has left
};

/// Progress thread only. Once closed (the peer left or was lost) it moves nothing more and the
/// messages it held never complete.
class PeerChannel {
 public:
  /// `config`, `forgotten_plans` and `counters` belong to the transport and outlive the channel.
  PeerChannel(const StreamConfig& config, int peer, std::unique_ptr<Pipe> pipe,
              const std::set<uint32_t>& forgotten_plans, TransportCounters& counters);

  void receive(const MessageTag& tag, MessageSink& sink, uint64_t token);
  /// `order`: its place among the posts to all peers.
  void send(const MessageTag& tag, MessageSource& source, uint64_t token, uint64_t order);
  void forget_plan(uint32_t plan);
  void say_farewell(const Farewell& farewell);

  /// One turn: at most one data frame out, whatever has arrived in. True if anything moved.
  bool progress(double now_s, std::vector<TransportEvent>& events);
  bool crosses_network() const { return pipe_->crosses_network(); }
  /// Pipe::bytes_before_link(), 0 when they have not moved for kPatience_s: then it is not the link
  /// that they wait for.
  size_t bytes_before_link(double now_s);
  /// Over the network data leaves by turns: a frame of the message `order` in the next progress(),
  /// none without one. Control frames need no turn.
  void give_turn(std::optional<uint64_t> order) { turn_ = order; }
  /// Appends the messages that want a turn.
  void list_departures(std::vector<Departure>& into);
  /// This rank itself was stopped for `gap_s`: the peer's silence over that time is not counted.
  void excuse(double gap_s) { last_heard_s_ += gap_s; }
  bool prepare_to_sleep(double now_s, std::vector<PollItem>& items, double& max_sleep_s);
  bool drained() const;

 private:
  struct Expected {
    MessageSink* sink;
    uint64_t token;
    uint64_t received_bytes;
  };
  struct Outgoing {
    MessageTag tag;
    MessageSource* source;
    uint64_t token;
    uint64_t order;
    uint64_t sent_bytes;
  };
  struct ControlFrame {
    FrameHeader header;
    std::string payload;
  };
  enum class Ending { kNone, kQueued, kWritten };

  bool read_frames(std::vector<TransportEvent>& events);
  bool read_header(std::span<const std::byte> window, std::vector<TransportEvent>& events);
  bool read_payload(std::span<const std::byte> window, std::vector<TransportEvent>& events);
  bool read_farewell(std::span<const std::byte> window, std::vector<TransportEvent>& events);
  void accept_data();
  void accept_ready(const FrameHeader& announced);
  void finish_frame(std::vector<TransportEvent>& events);
  bool write_frames(std::vector<TransportEvent>& events);
  bool write_control();
  bool write_data(std::vector<TransportEvent>& events);
  std::deque<Outgoing>::iterator next_to_leave();
  bool may_send() const;
  void queue_control(FrameKind kind, const MessageTag& tag, uint64_t offset);
  void check_liveness(double now_s, std::vector<TransportEvent>& events);
  void lose(const std::string& cause, std::vector<TransportEvent>& events);
  FrameHeader header(FrameKind kind, const MessageTag& tag, uint64_t offset) const;
  bool wants_to_write() const;

  const StreamConfig& config_;
  const int peer_;
  const std::unique_ptr<Pipe> pipe_;
  const std::set<uint32_t>& forgotten_plans_;
  TransportCounters& counters_;
  bool open_ = true;

  // --- arriving
  std::map<MessageTag, Expected> expected_;
  std::optional<FrameHeader> frame_;  // its payload is being read
  size_t payload_left_ = 0;           // padding included
  bool sink_holds_up_ = false;        // it took none of the bytes that are there
  std::optional<uint64_t> incarnation_;
  double last_heard_s_ = -1.0;

  // --- leaving
  std::map<MessageTag, uint64_t> ready_;    // announced by the peer, not posted here; bytes
  std::map<MessageTag, Outgoing> waiting_;  // posted here, not announced by the peer
  std::deque<Outgoing> active_;             // both; off the network the first leaves first
  std::optional<uint64_t> turn_;            // on the network: the order of the one that may leave
  std::optional<uint64_t> held_up_;         // the order of one whose source had no bytes ready
  size_t backlog_bytes_ = 0;
  double backlog_moved_s_ = 0.0;
  std::deque<ControlFrame> control_;
  std::optional<ControlFrame> farewell_;
  Ending ending_ = Ending::kNone;
  double last_sent_s_ = -1.0;
};

/// "plan 0, round 12, segment 3, phase 0"
std::string describe(const MessageTag& tag);

}  // namespace crossover
