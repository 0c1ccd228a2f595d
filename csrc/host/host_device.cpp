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

namespace crossover {
namespace {

constexpr size_t kAlignmentBytes = 256;
constexpr int64_t kScratchNumel = 1024;

void check_slice(const TensorList& tensors, Slice slice) {
  check(tensors.addresses.size() == tensors.numels.size(), "an address per tensor");
  check(slice.begin >= 0 && slice.numel() >= 0 && slice.end <= total_numel(tensors),
        "a slice lies within its tensors");
}

/// Walks a slice of tensors laid end to end, one tensor's run of elements at a time.
class TensorWalk {
 public:
  struct Run {
    std::byte* data;
    int64_t numel;
    size_t tensor;
  };

  TensorWalk(const TensorList& tensors, Slice slice)
      : tensors_(tensors), offset_(slice.begin), remaining_(slice.numel()) {
    check_slice(tensors, slice);
  }

  int64_t remaining() const { return remaining_; }

  /// The next 1 to `max_numel` elements; remaining() and `max_numel` are not 0.
  Run next(int64_t max_numel) {
    while (offset_ >= tensors_.numels[tensor_]) offset_ -= tensors_.numels[tensor_++];
    const int64_t numel = std::min({max_numel, remaining_, tensors_.numels[tensor_] - offset_});
    auto* data = static_cast<std::byte*>(tensors_.addresses[tensor_]);
    const Run run{data + static_cast<size_t>(offset_) * dtype_bytes(tensors_.dtype), numel,
                  tensor_};
    offset_ += numel;
    remaining_ -= numel;
    return run;
  }

 private:
  TensorList tensors_;
  size_t tensor_ = 0;
  int64_t offset_;  // within the tensor; may be past its end
  int64_t remaining_;
};

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
        walk_(spec_.tensors, spec_.slice),
        non_finite_found_(non_finite_found) {}

  size_t num_bytes() const override {
    return static_cast<size_t>(spec_.slice.numel()) * dtype_bytes(spec_.wire);
  }

  size_t produce(std::span<std::byte> out) override {
    const size_t element_bytes = dtype_bytes(spec_.wire);
    auto room = static_cast<int64_t>(out.size() / element_bytes);
    std::byte* to = out.data();
    while (room > 0 && walk_.remaining() > 0) {
      const TensorWalk::Run run = walk_.next(room);
      const int64_t found = pack_elements(run.data, spec_.tensors.dtype, to, spec_.wire, run.numel);
      if (found > 0) note_non_finite(found, run.tensor);
      to += static_cast<size_t>(run.numel) * element_bytes;
      room -= run.numel;
    }
    return static_cast<size_t>(to - out.data());
  }

 private:
  void note_non_finite(int64_t found, size_t tensor) {
    non_finite_found_.fetch_add(found, std::memory_order_relaxed);
    if (spec_.non_finite == NonFinitePolicy::kIgnore) return;
    const int64_t in_tensor = count_in_tensor(tensor);
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
    const auto skipped = static_cast<size_t>(slice.begin - message.slice.begin);
    inputs.push_back(
        {message.data + skipped * dtype_bytes(message.dtype), message.dtype, message.weight});
  }
  return inputs;
}

void mix_slice(TensorWalk walk, Dtype dtype, Dtype own, std::vector<MixInput> inputs) {
  while (walk.remaining() > 0) {
    const TensorWalk::Run run = walk.next(walk.remaining());
    mix_elements(run.data, dtype, own, inputs, run.numel);
    for (MixInput& input : inputs) {
      input.data += static_cast<size_t>(run.numel) * dtype_bytes(input.dtype);
    }
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
    mix_slice(TensorWalk(tensors, slice), tensors.dtype, own, std::move(inputs));
  }
}

void HostDevice::replace(const TensorList& tensors, Dtype /*own*/,
                         std::span<const WeightedMessage> messages) {
  for (const WeightedMessage& message : messages) check_slice(tensors, message.slice);
  for (const WeightedMessage& message : messages) {
    const std::byte* from = message.data;
    for (TensorWalk walk(tensors, message.slice); walk.remaining() > 0;) {
      const TensorWalk::Run run = walk.next(walk.remaining());
      pack_elements(from, message.dtype, run.data, tensors.dtype, run.numel);
      from += static_cast<size_t>(run.numel) * dtype_bytes(message.dtype);
    }
  }
}

std::shared_ptr<HostDevice> host_device() { return std::make_shared<HostDevice>(); }

int64_t total_numel(const TensorList& tensors) {
  return std::accumulate(tensors.numels.begin(), tensors.numels.end(), int64_t{0});
}

int64_t pack_tensors(const TensorList& tensors, Dtype wire, std::span<std::byte> out) {
  TensorWalk walk(tensors, {0, total_numel(tensors)});
  check(out.size() == static_cast<size_t>(walk.remaining()) * dtype_bytes(wire),
        "the buffer has the size of the packed tensors");
  std::byte* to = out.data();
  int64_t non_finite = 0;
  while (walk.remaining() > 0) {
    const TensorWalk::Run run = walk.next(walk.remaining());
    non_finite += pack_elements(run.data, tensors.dtype, to, wire, run.numel);
    to += static_cast<size_t>(run.numel) * dtype_bytes(wire);
  }
  return non_finite;
}

}  // namespace crossover
