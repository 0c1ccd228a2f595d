// One segment's way through its rounds: draws the program, announces room, sends, mixes phases.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/buffer_pool.h"
#include "core/device.h"
#include "core/message.h"
#include "core/plan.h"
#include "core/program.h"
#include "core/schedule.h"
#include "core/streamed_mix.h"
#include "core/transport.h"

namespace crossover {

class SegmentExchange;

/// For how many messages a plan keeps room.
enum class Rooms {
  /// For all of its next round: a rank that is late holds nobody up who is a round ahead.
  kAll,
  /// For about four segments at a time, in issue order. For rounds that are posted and closed at
  /// once: close_round() mixes what arrives straight from the transport, by and large without room.
  kFew,
};

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
  BufferPool* pool = nullptr;  // of a plan with room for few segments; null: this one's for ever
};

/// Whoever drives the engine, except mix_into. One round at a time:
///   prepare(r) -> make_room() and begin(x), in any order -> on_complete()... until one of them
///   says arrived -> mix_into(x) -> prepare(r+1)
/// Messages of round r may arrive once there is room, before begin().
///
/// A program of one phase is mixed from the inboxes straight into the tensors; with a pool, between
/// allow_mixing() and forbid_mixing(), while it arrives (streamed_mix.h). One of several
/// phases, or that copies, works on a copy in `work_`, so that tensors are written only in
/// mix_into; there the difference between the copy and Q(x) is added, or the copy replaces them.
/// Rooms are announced two phases ahead, so that memory is that of the largest two, however many
/// there are.
class SegmentExchange {
 public:
  explicit SegmentExchange(const ExchangeContext& context);

  /// Draws the program of `round`.
  void prepare(uint64_t round);
  /// The most bytes of messages that may be there at once, now that the program is drawn.
  uint64_t room_bytes() const;
  /// Announces room for what the program receives. True if the segment has arrived with it.
  bool make_room(Transport& transport, OperationTable& operations);
  /// Starts sending from `addresses`, which stay valid and unwritten until mix_into; what they
  /// hold is read after `posted`. True if the segment has arrived already.
  bool begin(std::span<void* const> addresses, std::shared_ptr<Fence> posted, Transport& transport,
             OperationTable& operations);
  /// Between begin() and mix_into(): `addresses`, which live until forbid_mixing(), may be written.
  void allow_mixing(std::span<void* const> addresses);
  void forbid_mixing();
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
  bool can_stream() const;
  Dtype work_dtype() const;
  Dtype round_wire() const;
  Dtype message_dtype(uint32_t phase) const;
  uint64_t message_bytes(uint32_t phase, const Slice& slice) const;
  TensorList tensors(std::span<void* const> addresses, StreamHandle stream = 0) const;
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
  MessageSink& sink(uint32_t phase, size_t index);
  MessageSource& source_of(const Send& send);
  void mix_complete(const TensorList& tensors);
  void require_weight_from(int peer);
  void require_weight(const Receive& receive, double weight) const;
  std::vector<double> weigh();
  void reserve(std::unique_ptr<DeviceBuffer>& buffer, size_t bytes);
  void give_back();

  const ExchangeContext context_;
  Dtype wire_ = Dtype::kFloat32;  // of this round
  const bool is_push_sum_;
  double weight_ = 1.0;
  double next_weight_ = 1.0;  // what mix_into makes of it
  uint64_t round_ = 0;
  Program program_;
  bool has_room_ = false;
  bool begun_ = false;
  bool streams_ = false;  // in this round
  uint32_t phase_ = 0;
  std::unique_ptr<TensorNotes> notes_;
  std::shared_ptr<Fence> posted_;
  std::vector<void*> addresses_;
  std::array<std::vector<Inbox>, kPhasesAhead> inboxes_;  // per receive; buffers are kept
  std::vector<uint32_t> awaited_;                         // per phase: receives not complete
  std::unique_ptr<StreamedMix> streamed_;                 // with a pool
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
