// Messages over one Pipe per peer: framing, room announcements, heartbeats, farewells.
//
// Every frame starts with a 64-byte header (frame.h). A receiver announces room for a tag with
// READY; the sender then streams the message as DATA frames of at most kMaxFrameBytes, so that
// control frames never wait behind a whole segment. Data therefore always has a place to go and a
// reader never stops reading.
//
// Messages that cross the network leave one after the other, in the order of their posts: as all
// ranks post alike, each link then carries one message out and one in. All at once, two would meet
// at one receiver while another's link is idle. One whose peer takes nothing for kPatience_s lets
// the others pass.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "core/transport.h"

namespace crossover {

class Pipe;
class PeerChannel;

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
  std::optional<std::pair<uint64_t, uint64_t>> turn_;  // whose it is; as of next_to_leave()
  double turn_moved_s_ = 0.0;
};

}  // namespace crossover
