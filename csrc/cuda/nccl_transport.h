// Messages in device memory through NCCL; agreement, heartbeats and farewells through another
// transport beside it.
//
// NCCL never reports a dead peer on the same host and its kernels wait for ever, so all that
// concerns life and death goes over `control`: before a group is launched, each of its messages is
// agreed on by a notice of eight bytes, the message's size, so that no kernel waits for a rank that
// has not posted. A message's weight travels with its notice. A phase of a segment is one group;
// launch_queue.h gives the order.
//
//   rank a: send, receive, phase_posted -> notices -> all agreed, its turn -> launch -> kSent,
//   kReceived
//
// Completion is in the order of the stream: an event says that the group is enqueued, and release()
// of its sources and sinks has said to the device on what. What went wrong later comes as an error
// of progress(), or as the peer's loss by `control`.
//
// Failure: progress() throws once and moves only control traffic from then on. A failed farewell
// aborts the communicator, off this thread; call Device::cancel_mixes() before it.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "core/clock.h"
#include "core/device.h"
#include "core/transport.h"
#include "cuda/launch_queue.h"
#include "cuda/nccl_communicator.h"

namespace crossover {

struct NcclTransportConfig {
  NcclCommunicatorConfig communicator;
  /// Agree with the peers before each launch. Without it a kernel waits on the GPU for ranks that
  /// have not posted, and segments that differ in size are not noticed; a launch is earlier by one
  /// notice's way.
  bool host_ready = true;
  std::vector<int> warm_peers;      // connected at start; every rank must list whoever lists it
  double timeout_s = 30.0;          // how long an orderly farewell is held back for its messages
  double call_timeout_s = 120.0;    // for NCCL to start, connect or launch
  double group_timeout_s = 1800.0;  // from a launch to its completion: the peer lives but lags
};

class NcclTransport final : public Transport {
 public:
  /// `device` makes the memory for the first contact; `control` reaches the same ranks and is as
  /// new as this. `clock` outlives the transport.
  NcclTransport(NcclTransportConfig config, std::shared_ptr<const NcclLibrary> library,
                std::shared_ptr<StreamEvents> events, std::shared_ptr<Device> device,
                std::unique_ptr<Transport> control, const Clock& clock);
  ~NcclTransport() override;

  void receive(int peer, const MessageTag& tag, MessageSink& sink, uint64_t token) override;
  void send(int peer, const MessageTag& tag, MessageSource& source, uint64_t token) override;
  void phase_posted(const MessageTag& tag, bool last) override;
  /// Waits for the end of a launch of the plan, if NCCL is at one; what is launched runs on.
  void forget_plan(uint32_t plan) override;
  bool carries_weights() const override { return config_.host_ready; }
  bool progress(double now_s, std::vector<TransportEvent>& events) override;
  bool prepare_to_sleep(double now_s, std::vector<PollItem>& items, double& max_sleep_s) override;
  void say_farewell(const Farewell& farewell) override;
  bool drained() override;
  TransportCounters counters() const override;

 private:
  enum class Stage { kNew, kStarting, kContacting, kOpen, kFinalizing, kClosed };
  class Notice;
  struct Group {
    std::vector<QueuedTransfer> transfers;
    double launched_s = 0.0;
    uint64_t mark = 0;
  };
  struct HeldFarewell {
    TransportEvent event;
    double until_s;
  };

  void agree(uint64_t id);
  void end_notice(uint64_t id);
  void route(std::vector<TransportEvent>& events);
  bool drive(std::vector<TransportEvent>& events);
  bool settle(std::vector<TransportEvent>& events);
  void contact_peers();
  void launch_next();
  void finish_launch(std::vector<TransportEvent>* events);
  bool retire_groups();
  void release_held(std::vector<TransportEvent>& events);
  void part_if_due();
  void check_deadlines() const;
  bool involved(int peer) const;
  bool at_rest() const;
  std::string where() const;

  const NcclTransportConfig config_;
  const std::shared_ptr<StreamEvents> events_;
  const std::shared_ptr<Device> device_;
  const std::unique_ptr<Transport> control_;
  const Clock& clock_;
  NcclCommunicator communicator_;

  Stage stage_ = Stage::kNew;
  double now_s_ = -1.0;  // less the time for which this process was stopped
  double excused_s_ = 0.0;
  double began_s_ = 0.0;       // the first progress()
  double call_began_s_ = 0.0;  // the call that NCCL is at
  LaunchQueue queue_;
  std::map<uint64_t, std::unique_ptr<Notice>> notices_;  // by the id of their transfer
  std::optional<Group> launching_;
  std::deque<Group> in_flight_;
  std::vector<TransportEvent> control_events_;
  std::vector<HeldFarewell> held_;
  std::optional<Farewell> farewell_;  // asked for, not said yet
  bool parted_ = false;               // said
  TransportCounters counters_;
};

}  // namespace crossover
