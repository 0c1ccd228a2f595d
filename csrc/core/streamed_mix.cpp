#include "core/streamed_mix.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace crossover {

class StreamedMix::Sink final : public MessageSink {
 public:
  Sink(StreamedMix& mix, size_t index) : mix_(mix), index_(index) {}
  size_t num_bytes() const override { return mix_.num_bytes_; }
  size_t consume(std::span<const std::byte> in) override {
    return mix_.take(mix_.receives_[index_], in);
  }

 private:
  StreamedMix& mix_;
  const size_t index_;
};

class StreamedMix::Source final : public MessageSource {
 public:
  explicit Source(std::unique_ptr<MessageSource> source) : source_(std::move(source)) {}
  size_t num_bytes() const override { return source_->num_bytes(); }
  size_t produce(std::span<std::byte> out) override {
    const size_t made = source_->produce(out);
    packed_bytes_ += made;
    return made;
  }
  size_t packed_bytes() const { return packed_bytes_; }

 private:
  const std::unique_ptr<MessageSource> source_;
  size_t packed_bytes_ = 0;
};

StreamedMix::StreamedMix(Device& device, BufferPool& pool, int64_t numel)
    : device_(device), pool_(pool), numel_(numel) {}

StreamedMix::~StreamedMix() = default;

void StreamedMix::begin_round(Dtype wire, size_t num_receives, Weigh weigh) {
  wire_ = wire;
  num_bytes_ = packed_bytes(wire, numel_);
  unit_bytes_ = packed_bytes(wire, unit_numel(wire));
  receives_.resize(num_receives);
  for (size_t i = 0; i < num_receives; ++i) {
    receives_[i].sink = std::make_unique<Sink>(*this, i);
    receives_[i].arrived_bytes = 0;
  }
  sources_.clear();
  weigh_ = std::move(weigh);
  weights_.clear();
  started_ = false;
  mixed_bytes_ = 0;
}

MessageSource& StreamedMix::send(std::unique_ptr<MessageSource> source) {
  sources_.push_back(std::make_unique<Source>(std::move(source)));
  return *sources_.back();
}

size_t StreamedMix::take(Incoming& from, std::span<const std::byte> in) {
  const bool is_end = from.arrived_bytes + in.size() == num_bytes_;
  const size_t usable = is_end ? in.size() : in.size() - in.size() % unit_bytes_;
  size_t mixed = 0;
  if (from.arrived_bytes == mixed_bytes_) {
    mixed = std::min(usable, mixable_bytes(&from));
    from.arrived_bytes += mixed;
    mix(mixed, &from, in.data());
  }
  if (mixed < usable) {
    keep(from, in.subspan(mixed, usable - mixed));
    mix_inboxes();
  }
  return usable;
}

/// In the first `num_bytes` of a message: whole units, or all of it.
int64_t StreamedMix::elements_in(size_t num_bytes) const {
  if (num_bytes == num_bytes_) return numel_;
  return static_cast<int64_t>(num_bytes / unit_bytes_) * unit_numel(wire_);
}

/// From mixed_bytes_ on; as if `without` had arrived whole.
size_t StreamedMix::mixable_bytes(const Incoming* without) const {
  if (tensors_.addresses.empty() || !started_) return 0;
  size_t end = num_bytes_;
  for (const auto& source : sources_) end = std::min(end, source->packed_bytes());
  for (const Incoming& other : receives_) {
    if (&other != without) end = std::min(end, other.arrived_bytes);
  }
  return end - std::min(end, mixed_bytes_);
}

void StreamedMix::keep(Incoming& from, std::span<const std::byte> in) {
  if (!from.inbox) from.inbox = pool_.take(num_bytes_);
  std::memcpy(from.inbox->data() + from.arrived_bytes, in.data(), in.size());
  from.arrived_bytes += in.size();
}

void StreamedMix::mix_inboxes() { mix(mixable_bytes(nullptr), nullptr, nullptr); }

/// The next `num_bytes` of every message: those of `direct` begin at `data`, the others' are in
/// their inboxes.
void StreamedMix::mix(size_t num_bytes, const Incoming* direct, const std::byte* data) {
  if (num_bytes == 0) return;
  if (weights_.empty()) weights_ = weigh_();
  const Slice slice{elements_in(mixed_bytes_), elements_in(mixed_bytes_ + num_bytes)};
  std::vector<WeightedMessage> messages;
  for (size_t i = 0; i < receives_.size(); ++i) {
    const std::byte* at =
        &receives_[i] == direct ? data : receives_[i].inbox->data() + mixed_bytes_;
    messages.push_back({at, slice, wire_, weights_[i]});
  }
  device_.mix(tensors_, wire_, messages);
  mixed_bytes_ += num_bytes;
}

void StreamedMix::allow(const TensorList& tensors) { tensors_ = tensors; }

void StreamedMix::finish(const TensorList& tensors) {
  allow(tensors);
  mix_inboxes();
  check(mixed_bytes_ == num_bytes_, "every message has come and gone");
  forbid();
  for (Incoming& receive : receives_) pool_.give(std::move(receive.inbox));
}

}  // namespace crossover
