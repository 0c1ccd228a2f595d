// Messages over one Pipe per peer: framing, room announcements, heartbeats, farewells.
//
// Every frame starts with a 64-byte header (frame.h). A receiver announces room for a tag with
// READY; the sender then streams the message as DATA frames of at most kMaxFrameBytes, so that
// control frames never wait behind a whole segment. Data therefore always has a place to go and a
// reader never stops reading.
//
// The messages of a host share its network link evenly, by turns of a frame: of the kAbreast oldest
// the one of which the least share has left is next. As all ranks post alike, that loads the links
// in as evenly as those out, and a rank that is late shares a link in for a while instead of
// stopping whoever else sends there. No turn is given while the link has enough to do; a message
// that waits for its peer or for the network between does not count as that.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "core/transport.h"

namespace crossover {

class Pipe;
class PeerChannel;
struct Departure;

inline constexpr size_t kAbreast = 8;
/// Bytes that wait for the link: enough to keep it busy, few enough to leave the order to us.
inline constexpr size_t kLinkBacklogBytes = size_t{128} << 10;
/// A socket's backlog that has not moved for this long does not keep others from leaving.
inline constexpr double kPatience_s = 0.05;

struct StreamConfig {
  int rank = 0;
  int size = 1;
  double timeout_s = 30.0;   // liveness: a peer silent for this long is lost
  uint32_t epoch = 0;        // membership epoch, in every header
  uint64_t incarnation = 0;  // of this rank's process, in every header
};

class StreamTransport final : public Transport {
 public:
  /// `pipes[p]` leads to rank p; the entry of this rank is null.
  StreamTransport(const StreamConfig& config, std::vector<std::unique_ptr<Pipe>> pipes);
  ~StreamTransport() override;

  bool carries_weights() const override { return true; }
  void receive(int peer, const MessageTag& tag, MessageSink& sink, uint64_t token) override;
  void send(int peer, const MessageTag& tag, MessageSource& source, uint64_t token) override;
  void forget_plan(uint32_t plan) override;
  bool progress(double now_s, std::vector<TransportEvent>& events) override;
  bool prepare_to_sleep(double now_s, std::vector<PollItem>& items, double& max_sleep_s) override;
  void say_farewell(const Farewell& farewell) override;
  bool drained() override;
  TransportCounters counters() const override { return counters_; }

 private:
  void give_turn(double now_s);

  const StreamConfig config_;
  std::vector<std::unique_ptr<PeerChannel>> channels_;
  std::set<uint32_t> forgotten_plans_;
  TransportCounters counters_;
  double last_progress_s_ = -1.0;

  uint64_t num_posts_ = 0;
  std::vector<Departure> departures_;  // kept for its memory
  bool waits_for_link_ = false;        // a message wants a turn and the link is full
};

}  // namespace crossover
