// One segment's way through its rounds: draws the program, announces room, sends, mixes phases.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/message.h"
#include "core/plan.h"
#include "core/program.h"
#include "core/schedule.h"
#include "core/transport.h"

namespace crossover {

class SegmentExchange;

/// A send or receive that the transport holds; found again by its token.
struct Operation {
  SegmentExchange* exchange = nullptr;
  bool is_send = false;
  uint32_t phase = 0;
  int peer = -1;
  uint64_t bytes = 0;
};

/// Tokens of operations under way. Progress thread only.
class OperationTable {
 public:
  uint64_t add(const Operation& operation);
  /// The operation of `token`, which is free again afterwards. A null exchange: dropped meanwhile.
  Operation take(uint64_t token);
  /// Peers of the operations of `exchange` that are under way.
  std::vector<int> peers_of(const SegmentExchange& exchange) const;
  /// Leaves the operations of `exchange` without an owner.
  void drop(const SegmentExchange& exchange);

 private:
  std::vector<Operation> operations_;
  std::vector<uint64_t> free_;
};

/// What a segment's exchange is made from; the references outlive it.
struct ExchangeContext {
  const SegmentPlan& plan;
  const Schedule& schedule;
  Device& device;
  uint32_t plan_id = 0;
  uint32_t segment = 0;
  int rank = 0;
  NonFinitePolicy non_finite = NonFinitePolicy::kRaise;
};

/// Progress thread, except mix_into. One round at a time:
///   prepare(r) -> begin(x) -> on_complete()... until it says arrived -> mix_into(x) ->
///   prepare(r+1)
/// Messages of round r may arrive before begin().
///
/// A program of one phase is mixed from the inboxes straight into the tensors. One of several
/// phases, or that copies, works on a copy in `work_`, so that tensors are written only in
/// mix_into; there the difference between the copy and Q(x) is added, or the copy replaces them.
/// Rooms are announced two phases ahead, so that memory is that of the largest two, however many
/// there are.
class SegmentExchange {
 public:
  explicit SegmentExchange(const ExchangeContext& context);

  /// Draws the program of `round` and announces room for all it receives.
  void prepare(uint64_t round, Transport& transport, OperationTable& operations);
  /// Starts sending from `addresses`, which stay valid and unwritten until mix_into; what they
  /// hold is read after `posted`. True if the segment has arrived already.
  bool begin(std::span<void* const> addresses, std::shared_ptr<Fence> posted, Transport& transport,
             OperationTable& operations);
  /// A send or receive is complete. True if the segment has arrived with it.
  bool on_complete(const Operation& operation, Transport& transport, OperationTable& operations);
  /// Training thread, after arrival: mixes into `addresses`, on `stream` if the device has streams.
  void mix_into(std::span<void* const> addresses, StreamHandle stream);
  /// Frees what the device keeps for this segment; nothing of it is under way any more.
  void release();

  uint64_t round() const { return round_; }
  /// Push-sum's w of this rank, changed by mix_into; 1 with other schedules.
  double weight() const { return weight_; }
  /// Between mix_into and begin.
  void set_weight(double weight) { weight_ = weight; }
  /// What the first phase of the last mixed round has found, if its program asked for it.
  const Difference& difference() const { return difference_; }
  bool begun() const { return begun_; }
  const ExchangeContext& context() const { return context_; }

 private:
  static constexpr uint32_t kPhasesAhead = 2;

  struct Inbox {
    std::unique_ptr<DeviceBuffer> buffer;
    std::unique_ptr<MessageSink> sink;
  };

  MessageTag tag(uint32_t phase) const;
  bool mixes_in_place() const;
  Dtype work_dtype() const;
  Dtype round_wire() const;
  Dtype message_dtype(uint32_t phase) const;
  uint64_t message_bytes(uint32_t phase, const Slice& slice) const;
  TensorList tensors(std::span<void* const> addresses, StreamHandle stream = 0) const;
  uint64_t rounding_key() const;
  PackSpec pack_spec(const TensorList& tensors, const Slice& slice, Dtype wire) const;
  TensorList work();
  void announce(uint32_t phase, Transport& transport, OperationTable& operations);
  void copy_to_work();
  void round_work();
  void send_phase(Transport& transport, OperationTable& operations);
  bool advance(Transport& transport, OperationTable& operations);
  std::vector<Inbox>& inboxes(uint32_t phase) { return inboxes_[phase % kPhasesAhead]; }
  bool is_own(const Receive& receive) const { return receive.peer == context_.rank; }
  std::vector<WeightedMessage> messages(uint32_t phase);
  std::vector<WeightedMessage> own_values(uint32_t phase);
  void mix_phase();
  void measure(const TensorList& tensors, std::span<const WeightedMessage> arrived);
  void require_weight(const Operation& operation);
  void take_push_sum_step(std::vector<WeightedMessage>& arrived);
  static void reserve(std::unique_ptr<DeviceBuffer>& buffer, size_t bytes, Device& device);

  const ExchangeContext context_;
  Dtype wire_ = Dtype::kFloat32;  // of this round
  const bool is_push_sum_;
  double weight_ = 1.0;
  Difference difference_;
  uint64_t round_ = 0;
  Program program_;
  bool begun_ = false;
  uint32_t phase_ = 0;
  std::unique_ptr<TensorNotes> notes_;
  std::shared_ptr<Fence> posted_;
  std::vector<void*> addresses_;
  std::array<std::vector<Inbox>, kPhasesAhead> inboxes_;  // per receive; buffers are kept
  std::vector<uint32_t> awaited_;                         // per phase: receives not complete
  std::vector<std::unique_ptr<MessageSource>> sources_;
  uint32_t unsent_ = 0;
  std::unique_ptr<DeviceBuffer> work_;
  std::unique_ptr<DeviceBuffer> packed_;
  void* work_address_ = nullptr;
  int64_t work_numel_ = 0;
};

/// "segment 3 'layer4.2'"
std::string describe_segment(const SegmentPlan& plan, uint32_t segment);

}  // namespace crossover
