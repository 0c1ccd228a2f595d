// Fixed records of what the engine did, in a lock-free ring: tests, byte counts, timelines and
// telemetry all read these.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace crossover {

enum class EventKind : uint8_t {
  kPosted = 0,     // training thread: the segment was handed to the progress thread
  kSendBegun = 1,  // progress thread: a message to `peer` was given to the transport
  kSent = 2,       // progress thread: it has been read out of the tensors
  kReceived = 3,   // progress thread: a message from `peer` is complete
  kArrived = 4,    // progress thread: the segment can be mixed
  kMixBegun = 5,   // training thread, inside its wait
  kMixed = 6,      // training thread: parameters hold the mixed values
  kFailed = 7,     // the first failure of this engine
};

/// "posted", "send_begun", ...
std::string_view event_kind_name(EventKind kind);

struct EventRecord {
  double time_s = 0.0;
  uint64_t round = 0;
  uint64_t bytes = 0;
  uint32_t plan = 0;
  uint32_t segment = 0;
  uint32_t phase = 0;
  int32_t peer = -1;
  EventKind kind = EventKind::kPosted;
};

/// The last `capacity` records. Any thread may add; adding never blocks or allocates.
class EventRing {
 public:
  /// capacity 0: nothing is kept.
  explicit EventRing(size_t capacity);
  ~EventRing();
  void add(const EventRecord& record) noexcept;
  /// Records still held with an index of at least `first`, oldest first, and in `next` the index
  /// to ask for next. A record that is being overwritten meanwhile is left out.
  std::vector<EventRecord> read(uint64_t first, uint64_t& next) const;

 private:
  struct Slot;
  const size_t capacity_;
  const std::unique_ptr<Slot[]> slots_;
  std::atomic<uint64_t> added_{0};
};

}  // namespace crossover
