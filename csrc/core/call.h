// A collective on its way: posts the messages of a CallProgram, combines and forwards.
//
// Unlike a gossiped segment it writes the caller's memory from the progress thread, as bytes
// arrive: the memory is lent to the call until it is complete.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/call_program.h"
#include "core/message.h"
#include "core/transport.h"

namespace crossover {

class Call;

/// One message of a call: a send, or one peer's part of a receive.
struct CallOperation {
  std::shared_ptr<Call> call;
  bool is_send = false;
  uint32_t index = 0;  // in the program's sends or receives
  uint32_t part = 0;   // in the receive's peers
};

/// Tokens of the messages of all calls under way. Distinct from those of segments.
class CallTokens {
 public:
  static bool owns(uint64_t token) { return (token & kCallBit) != 0; }
  uint64_t add(CallOperation operation);
  /// The operation of `token`, which is free again afterwards.
  CallOperation take(uint64_t token);

 private:
  static constexpr uint64_t kCallBit = uint64_t{1} << 63;
  std::vector<CallOperation> operations_;
  std::vector<uint64_t> free_;
};

/// Progress thread, except where said. begin(), then on_complete() until is_complete().
class Call : public std::enable_shared_from_this<Call> {
 public:
  Call(uint64_t id, CallProgram program, double timeout_s, double deadline_s);
  ~Call();

  /// Posts what can be posted. `sequence`: counts the collectives of all ranks alike.
  void begin(uint64_t sequence, Transport& transport, CallTokens& tokens);
  /// One message more is complete. Throws InvalidArgument if the peer's call is another one.
  void on_complete(const CallOperation& operation, Transport& transport, CallTokens& tokens);
  bool is_complete() const { return num_open_ == 0; }
  /// Whom it still waits for, each once, ascending.
  std::vector<int> peers() const;
  /// Those of them with which no message has been exchanged; all of them if there are none.
  std::vector<int> absent_peers() const;

  uint64_t id() const { return id_; }
  double timeout_s() const { return timeout_s_; }
  double deadline_s() const { return deadline_s_; }
  const CallProgram& program() const { return program_; }
  /// "all_reduce(sum) of 64 float32 (collective 12)". Any thread after begin().
  std::string describe() const;

  // Guarded by the engine's mutex.
  bool is_done = false;     // the memory is the caller's again
  bool is_watched = false;  // whoever waits for any call hears of it

 private:
  class Source;
  class Sink;
  struct Room;
  struct Lane;

  MessageTag tag(uint32_t label) const;
  void fill_lane(int peer, Transport& transport, CallTokens& tokens);
  void count_message(int peer);
  void complete_receive(uint32_t index, Transport& transport, CallTokens& tokens);
  void require_same_call(int peer, double code) const;
  std::unique_ptr<std::byte[]> take_spare();

  const uint64_t id_;
  const CallProgram program_;
  const double timeout_s_;
  const double deadline_s_;
  uint64_t sequence_ = 0;
  uint64_t num_open_ = 0;                            // messages not complete
  std::vector<Room> rooms_;                          // per receive
  std::vector<Lane> lanes_;                          // per peer
  std::vector<uint32_t> labels_;                     // per send
  std::vector<std::unique_ptr<Source>> sources_;     // per send, while under way
  std::vector<std::unique_ptr<std::byte[]>> spare_;  // of kChunkBytes, for what is kept aside
  std::vector<std::vector<uint32_t>> followers_;     // per receive: the sends after it
};

/// All calls under way. Progress thread.
class CallTable {
 public:
  /// Takes the call up; true if it is complete at once.
  bool begin(const std::shared_ptr<Call>& call, Transport& transport);
  /// The call that is complete with this message, or null. Throws as Call::on_complete().
  std::shared_ptr<Call> on_complete(uint64_t token, Transport& transport);
  /// Lets go of all memory; nothing of any call is read or written any more.
  void abandon(Transport& transport);
  /// The call whose deadline has passed, or null.
  const Call* overdue(double now_s) const;
  /// A call that waits for `peer`, or null.
  const Call* waiting_for(int peer) const;
  /// Seconds from now to the next deadline; at least 0, infinite without calls.
  double next_deadline_in_s(double now_s) const;

 private:
  CallTokens tokens_;
  std::vector<std::shared_ptr<Call>> calls_;
  uint64_t next_sequence_ = 0;
  std::map<std::pair<int, uint32_t>, uint64_t> next_sent_;      // by peer and tag
  std::map<std::pair<int, uint32_t>, uint64_t> next_received_;  // likewise
};

}  // namespace crossover
