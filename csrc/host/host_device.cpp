#include "host/host_device.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "host/kernels.h"
#include "host/tensor_walk.h"

namespace crossover {
namespace {

constexpr size_t kAlignmentBytes = 256;
constexpr int64_t kScratchNumel = 1024;

class HostBuffer final : public DeviceBuffer {
 public:
  explicit HostBuffer(size_t bytes) : size_bytes_(bytes) {
    if (bytes <= std::numeric_limits<size_t>::max() - kAlignmentBytes) {
      const size_t padded = (bytes / kAlignmentBytes + 1) * kAlignmentBytes;
      memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignmentBytes, padded)));
    }
    if (!memory_) throw DeviceError("host: no memory for " + std::to_string(bytes) + " bytes");
  }

  std::byte* data() override { return memory_.get(); }
  size_t size_bytes() const override { return size_bytes_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t size_bytes_;
};

class HostSource final : public MessageSource {
 public:
  HostSource(PackSpec spec, std::atomic<int64_t>& non_finite_found)
      : spec_(std::move(spec)),
        walk_(spec_.tensors, spec_.slice, unit_numel(spec_.wire)),
        non_finite_found_(non_finite_found) {}

  size_t num_bytes() const override { return packed_bytes(spec_.wire, spec_.slice.numel()); }

  size_t produce(std::span<std::byte> out) override {
    size_t made = 0;
    while (walk_.remaining() > 0) {
      const int64_t room = numel_that_fits(out.size() - made);
      if (room == 0) break;
      const TensorWalk::Run run = walk_.next(room);
      const int64_t found =
          pack_elements(run.data, spec_.tensors.dtype, out.data() + made, spec_.wire, run.numel);
      if (found > 0) note_non_finite(found, run.tensor);
      made += packed_bytes(spec_.wire, run.numel);
    }
    return made;
  }

 private:
  /// Whole units of the codec in so many bytes; all that remains if it fits.
  int64_t numel_that_fits(size_t num_bytes) const {
    if (packed_bytes(spec_.wire, walk_.remaining()) <= num_bytes) return walk_.remaining();
    const int64_t unit = unit_numel(spec_.wire);
    return static_cast<int64_t>(num_bytes / packed_bytes(spec_.wire, unit)) * unit;
  }

  /// `tensor`: the first that may hold them; blocks may span several.
  void note_non_finite(int64_t found, size_t tensor) {
    non_finite_found_.fetch_add(found, std::memory_order_relaxed);
    if (spec_.non_finite == NonFinitePolicy::kIgnore) return;
    int64_t in_tensor = 0;
    while ((in_tensor = count_in_tensor(tensor)) == 0) ++tensor;
    const std::string name = spec_.names.empty() ? "tensor " + std::to_string(tensor)
                                                 : "parameter '" + spec_.names[tensor] + "'";
    throw NonFiniteError(
        spec_.where + ": " + name + " holds " +
        spell_non_finite(static_cast<uint64_t>(in_tensor), spec_.tensors.dtype, spec_.wire));
  }

  /// Over the whole tensor, so that the message does not depend on the size of a window.
  int64_t count_in_tensor(size_t tensor) const {
    const TensorList alone{spec_.tensors.dtype, spec_.tensors.addresses.subspan(tensor, 1),
                           spec_.tensors.numels.subspan(tensor, 1)};
    std::array<std::byte, size_t{8} * kScratchNumel> scratch;
    int64_t count = 0;
    for (TensorWalk walk(alone, {0, total_numel(alone)}); walk.remaining() > 0;) {
      const TensorWalk::Run run = walk.next(kScratchNumel);
      count += pack_elements(run.data, alone.dtype, scratch.data(), spec_.wire, run.numel);
    }
    return count;
  }

  const PackSpec spec_;
  TensorWalk walk_;
  std::atomic<int64_t>& non_finite_found_;
};

class HostSink final : public MessageSink {
 public:
  HostSink(std::byte* data, size_t num_bytes) : data_(data), num_bytes_(num_bytes) {}

  size_t num_bytes() const override { return num_bytes_; }

  size_t consume(std::span<const std::byte> in) override {
    const size_t taken = std::min(in.size(), num_bytes_ - filled_);
    if (taken > 0) std::memcpy(data_ + filled_, in.data(), taken);
    filled_ += taken;
    return taken;
  }

 private:
  std::byte* data_;
  size_t num_bytes_;
  size_t filled_ = 0;
};

/// Where the set of messages that hold an element changes, in ascending order.
std::vector<int64_t> slice_borders(std::span<const WeightedMessage> messages) {
  std::vector<int64_t> borders;
  for (const WeightedMessage& message : messages) {
    borders.push_back(message.slice.begin);
    borders.push_back(message.slice.end);
  }
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  return borders;
}

/// What the messages that hold all of `slice` hold at its first element.
std::vector<MixInput> inputs_over(Slice slice, std::span<const WeightedMessage> messages) {
  std::vector<MixInput> inputs;
  for (const WeightedMessage& message : messages) {
    if (message.slice.begin > slice.begin || message.slice.end < slice.end) continue;
    const int64_t skipped = slice.begin - message.slice.begin;
    inputs.push_back(
        {message.data + packed_bytes(message.dtype, skipped), message.dtype, message.weight});
  }
  return inputs;
}

/// Elements that are mixed together.
int64_t unit_of(Dtype own, std::span<const MixInput> inputs) {
  int64_t unit = unit_numel(own);
  for (const MixInput& input : inputs) unit = std::max(unit, unit_numel(input.dtype));
  return unit;
}

/// Sums in float32, which are then rounded stochastically.
void mix_and_round(std::byte* x, const TensorList& tensors, int64_t first, Dtype own,
                   std::span<const MixInput> inputs, int64_t numel) {
  std::array<float, kScratchNumel> sums;
  check(numel <= kScratchNumel, "sums fit their scratch");
  auto* const bytes = reinterpret_cast<std::byte*>(sums.data());
  pack_elements(x, tensors.dtype, bytes, Dtype::kFloat32, numel);
  mix_elements(sums.data(), Dtype::kFloat32, own, inputs, numel);
  round_elements({sums.data(), static_cast<size_t>(numel)}, x, tensors.dtype, tensors.rounding_key,
                 first);
}

void mix_slice(const TensorList& tensors, Slice slice, Dtype own, std::vector<MixInput> inputs) {
  TensorWalk walk(tensors, slice, unit_of(own, inputs));
  const bool stochastic = tensors.rounding_key != 0 && dtype_bytes(tensors.dtype) == 2;
  while (walk.remaining() > 0) {
    const int64_t first = slice.end - walk.remaining();
    const TensorWalk::Run run = walk.next(stochastic ? kScratchNumel : walk.remaining());
    if (stochastic) {
      mix_and_round(run.data, tensors, first, own, inputs, run.numel);
    } else {
      mix_elements(run.data, tensors.dtype, own, inputs, run.numel);
    }
    walk.write_back();
    for (MixInput& input : inputs) input.data += packed_bytes(input.dtype, run.numel);
  }
}

/// Adds one block of a message, at most kSliceUnitNumel elements.
void add_block(Difference& found, const TensorList& tensors, Dtype own,
               const WeightedMessage& message, Slice block) {
  TensorWalk walk(tensors, block, kSliceUnitNumel);
  const TensorWalk::Run run = walk.next(kSliceUnitNumel);
  const std::byte* from =
      message.data + packed_bytes(message.dtype, block.begin - message.slice.begin);
  alignas(8) std::array<std::byte, 8 * kSliceUnitNumel> sent;
  std::array<double, kSliceUnitNumel> ours;
  std::array<double, kSliceUnitNumel> theirs;
  pack_elements(run.data, tensors.dtype, sent.data(), own, run.numel);
  pack_elements(sent.data(), own, std::as_writable_bytes(std::span(ours)).data(), Dtype::kFloat64,
                run.numel);
  pack_elements(from, message.dtype, std::as_writable_bytes(std::span(theirs)).data(),
                Dtype::kFloat64, run.numel);
  for (int64_t k = 0; k < run.numel; ++k) {
    const double apart = theirs[k] - ours[k];
    found.squares += apart * apart;
    found.own_squares += ours[k] * ours[k];
  }
}

}  // namespace

std::unique_ptr<DeviceBuffer> HostDevice::allocate(size_t bytes) {
  return std::make_unique<HostBuffer>(bytes);
}

std::unique_ptr<MessageSource> HostDevice::source(const PackSpec& spec) {
  return std::make_unique<HostSource>(spec, non_finite_found_);
}

std::unique_ptr<MessageSink> HostDevice::sink(DeviceBuffer& buffer, size_t num_bytes) {
  check(num_bytes <= buffer.size_bytes(), "a sink fits its buffer");
  return std::make_unique<HostSink>(buffer.data(), num_bytes);
}

void HostDevice::mix(const TensorList& tensors, Dtype own,
                     std::span<const WeightedMessage> messages) {
  for (const WeightedMessage& message : messages) check_slice(tensors, message.slice);
  const std::vector<int64_t> borders = slice_borders(messages);
  for (size_t k = 1; k < borders.size(); ++k) {
    const Slice slice{borders[k - 1], borders[k]};
    std::vector<MixInput> inputs = inputs_over(slice, messages);
    if (inputs.empty()) continue;
    mix_slice(tensors, slice, own, std::move(inputs));
  }
}

void HostDevice::replace(const TensorList& tensors, Dtype /*own*/,
                         std::span<const WeightedMessage> messages) {
  for (const WeightedMessage& message : messages) check_slice(tensors, message.slice);
  for (const WeightedMessage& message : messages) {
    const std::byte* from = message.data;
    TensorWalk walk(tensors, message.slice, unit_numel(message.dtype));
    while (walk.remaining() > 0) {
      const TensorWalk::Run run = walk.next(walk.remaining());
      pack_elements(from, message.dtype, run.data, tensors.dtype, run.numel);
      walk.write_back();
      from += packed_bytes(message.dtype, run.numel);
    }
  }
}

Difference HostDevice::difference(const TensorList& tensors, Dtype own,
                                  std::span<const WeightedMessage> messages) {
  Difference found;
  for (const WeightedMessage& message : messages) {
    check_slice(tensors, message.slice);
    const int64_t end = message.slice.end;
    for (int64_t at = message.slice.begin; at < end; at += kMeasuredBlocks * kSliceUnitNumel) {
      add_block(found, tensors, own, message, {at, std::min(at + kSliceUnitNumel, end)});
    }
  }
  return found;
}

std::shared_ptr<HostDevice> host_device() { return std::make_shared<HostDevice>(); }

int64_t total_numel(const TensorList& tensors) {
  return std::accumulate(tensors.numels.begin(), tensors.numels.end(), int64_t{0});
}

int64_t pack_tensors(const TensorList& tensors, Dtype wire, std::span<std::byte> out) {
  TensorWalk walk(tensors, {0, total_numel(tensors)}, unit_numel(wire));
  check(out.size() == packed_bytes(wire, walk.remaining()),
        "the buffer has the size of the packed tensors");
  std::byte* to = out.data();
  int64_t non_finite = 0;
  while (walk.remaining() > 0) {
    const TensorWalk::Run run = walk.next(walk.remaining());
    non_finite += pack_elements(run.data, tensors.dtype, to, wire, run.numel);
    to += packed_bytes(wire, run.numel);
  }
  return non_finite;
}

}  // namespace crossover
