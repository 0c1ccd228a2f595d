#include "fake_cuda.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "core/error.h"
#include "host/host_device.h"
#include "host/kernels.h"

namespace crossover {
namespace {

constexpr size_t kAlignmentBytes = 256;
constexpr unsigned char kGarbage = 0xcd;  // fresh memory holds no zeros to be lucky with

std::byte* allocate(size_t bytes) {
  void* memory =
      std::aligned_alloc(kAlignmentBytes, (bytes / kAlignmentBytes + 1) * kAlignmentBytes);
  std::memset(memory, kGarbage, bytes);
  return static_cast<std::byte*>(memory);
}

TensorEntry tensor_of(const TensorTable& table, uint32_t tile) {
  return table.tensor_of_tile == nullptr ? table.only : table.tensors[table.tensor_of_tile[tile]];
}

void pack_tile(const PackLaunch& launch, uint32_t tile) {
  const TensorEntry tensor = tensor_of(launch.table, tile);
  const TilePart part = part_of_tile(tensor, tile, launch.slice);
  const auto in_out = static_cast<size_t>(part.in_segment - launch.slice.begin);
  const int64_t found = pack_elements(
      tensor.data + static_cast<size_t>(part.in_tensor) * dtype_bytes(launch.from), launch.from,
      launch.out + in_out * dtype_bytes(launch.to), launch.to, part.numel);
  if (found == 0 || launch.found == nullptr) return;
  const unsigned int index =
      launch.table.tensor_of_tile == nullptr ? 0 : launch.table.tensor_of_tile[tile];
  launch.found->count += static_cast<unsigned long long>(found);
  launch.found->first_tensor = std::min(launch.found->first_tensor, index);
}

/// Elements from `element` on, at most to `end`, over which the set of messages is the same.
int64_t run_of(const MixLaunch& launch, int64_t element, int64_t end) {
  for (int j = 0; j < launch.num_messages; ++j) {
    const Slice& slice = launch.messages[j].slice;
    if (slice.begin > element) end = std::min(end, slice.begin);
    if (slice.end > element) end = std::min(end, slice.end);
  }
  return end - element;
}

std::vector<MixInput> inputs_at(const MixLaunch& launch, int64_t element) {
  std::vector<MixInput> inputs;
  for (const MixMessage& message : std::span(launch.messages, launch.num_messages)) {
    if (element < message.slice.begin || element >= message.slice.end) continue;
    const auto at = static_cast<size_t>(element - message.slice.begin);
    inputs.push_back(
        {message.data + at * dtype_bytes(launch.message), launch.message, message.weight});
  }
  return inputs;
}

void mix_tile(const MixLaunch& launch, uint32_t tile) {
  const TensorEntry tensor = tensor_of(launch.table, tile);
  const TilePart part = part_of_tile(tensor, tile, launch.slice);
  for (int64_t k = 0; k < part.numel;) {
    const int64_t element = part.in_segment + k;
    const int64_t numel = run_of(launch, element, part.in_segment + part.numel);
    const std::vector<MixInput> inputs = inputs_at(launch, element);
    const auto at = static_cast<size_t>(part.in_tensor + k);
    std::byte* x = tensor.data + at * dtype_bytes(launch.tensor);
    if (launch.replaces && !inputs.empty()) {
      std::memset(x, 0, static_cast<size_t>(numel) * dtype_bytes(launch.tensor));
    }
    if (!inputs.empty()) mix_elements(x, launch.tensor, launch.own, inputs, numel);
    k += numel;
  }
}

/// What a kernel that goes by blocks does: its tiles are checked, its work is the host device's.
class BlocksOfTable {
 public:
  explicit BlocksOfTable(const TensorTable& table) {
    for (uint32_t t = 0; t < table.num_tensors; ++t) {
      const TensorEntry& tensor = table.tensor_of_tile == nullptr ? table.only : table.tensors[t];
      addresses_.push_back(tensor.data);
      numels_.push_back(tensor.numel);
    }
  }
  TensorList list(Dtype dtype, uint64_t rounding_key = 0) const {
    return {dtype, addresses_, numels_, nullptr, nullptr, 0, rounding_key};
  }

 private:
  std::vector<void*> addresses_;
  std::vector<int64_t> numels_;
};

void require_segment_tiles(const TileRange& tiles, const Slice& slice) {
  check(tiles == segment_tiles(slice), "a kernel by blocks gets the segment's tiles");
}

/// The lowest tensor that alone holds a value too large for a block.
unsigned int first_non_finite(const TensorList& tensors) {
  for (size_t t = 0; t < tensors.numels.size(); ++t) {
    const TensorList alone{tensors.dtype, tensors.addresses.subspan(t, 1),
                           tensors.numels.subspan(t, 1)};
    std::vector<std::byte> out(packed_bytes(Dtype::kInt8Blocks, tensors.numels[t]));
    if (pack_tensors(alone, Dtype::kInt8Blocks, out) > 0) return static_cast<unsigned int>(t);
  }
  return 0;
}

void pack_by_blocks(const PackLaunch& launch) {
  require_segment_tiles(launch.tiles, launch.slice);
  const BlocksOfTable blocks(launch.table);
  const TensorList tensors = blocks.list(launch.from);
  const auto device = host_device();
  const auto source =
      device->source({tensors, launch.slice, launch.to, NonFinitePolicy::kIgnore, ""});
  source->produce({launch.out, source->num_bytes()});
  const int64_t found = device->non_finite_found();
  if (found == 0 || launch.found == nullptr) return;
  launch.found->count += static_cast<unsigned long long>(found);
  launch.found->first_tensor = std::min(launch.found->first_tensor, first_non_finite(tensors));
}

void unpack_blocks(const PackLaunch& launch) {
  require_segment_tiles(launch.tiles, launch.slice);
  pack_elements(launch.table.only.data, launch.from, launch.out, launch.to, launch.slice.numel());
}

void mix_on_host(const MixLaunch& launch) {
  if (goes_by_blocks(launch.own)) require_segment_tiles(launch.tiles, launch.slice);
  const BlocksOfTable blocks(launch.table);
  std::vector<WeightedMessage> messages;
  for (const MixMessage& message : std::span(launch.messages, launch.num_messages)) {
    messages.push_back({message.data, message.slice, launch.message, message.weight});
  }
  const TensorList tensors = blocks.list(launch.tensor, launch.rounding_key);
  if (launch.replaces) return host_device()->replace(tensors, launch.own, messages);
  host_device()->mix(tensors, launch.own, messages);
}

}  // namespace

void FakeCuda::count(const std::string& call) {
  const std::lock_guard lock(mutex_);
  ++calls_[call];
  if (failing_ != call) return;
  failing_.clear();
  throw DeviceError("CUDA: " + call + " failed");
}

int FakeCuda::calls(const std::string& call) const {
  const std::lock_guard lock(mutex_);
  return calls_.contains(call) ? calls_.at(call) : 0;
}

void FakeCuda::put(StreamHandle stream, std::string name, std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  streams_.at(stream).push_back({std::move(name), std::move(work)});
}

void FakeCuda::put_gate(StreamHandle stream, uint64_t number, std::function<bool()> open) {
  const std::lock_guard lock(mutex_);
  streams_.at(stream).push_back({"", {}, 0, number, std::move(open)});
}

bool FakeCuda::at_gate(StreamHandle stream, uint64_t number) const {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return false;
  const auto found = streams_.find(stream);
  if (found == streams_.end() || found->second.empty()) return true;
  const Work& work = found->second.front();
  return work.gate && work.generation >= number;
}

bool FakeCuda::can_step(const std::deque<Work>& stream) const {
  if (stream.empty()) return false;
  const Work& work = stream.front();
  if (work.gate) return work.gate();
  return work.awaited == 0 || !events_.at(work.awaited).pending.contains(work.generation);
}

bool FakeCuda::step(StreamHandle stream) {
  const std::lock_guard lock(mutex_);
  const auto found = streams_.find(stream);
  if (found == streams_.end() || !can_step(found->second)) return false;
  std::deque<Work>& queue = found->second;
  const Work work = queue.front();
  queue.pop_front();
  if (work.run) work.run();
  if (!work.name.empty()) done_.push_back(work.name);
  drop_if_over(stream);
  return true;
}

std::vector<StreamHandle> FakeCuda::runnable() const {
  std::vector<StreamHandle> found;
  for (const auto& [stream, queue] : streams_) {
    if (can_step(queue) && !held_.contains(stream)) found.push_back(stream);
  }
  return found;
}

void FakeCuda::run() {
  const std::lock_guard lock(mutex_);
  for (auto streams = runnable(); !streams.empty(); streams = runnable()) {
    for (const StreamHandle stream : streams) step(stream);
  }
}

void FakeCuda::run_some(std::mt19937& generator, int count) {
  const std::lock_guard lock(mutex_);
  while (count > 0) {
    const std::vector<StreamHandle> streams = runnable();
    if (streams.empty()) return;
    const StreamHandle drawn = streams[generator() % streams.size()];
    for (unsigned burst = 1U << generator() % 8; burst > 0 && count > 0; --burst, --count) {
      if (!step(drawn)) break;
    }
  }
}

template <class Reached>
void FakeCuda::run_until(Reached reached) {
  const std::lock_guard lock(mutex_);
  while (!reached()) {
    const std::vector<StreamHandle> streams = runnable();
    if (streams.empty()) throw std::logic_error("the fake GPU waits for ever");
    for (const StreamHandle stream : streams) step(stream);
  }
}

void FakeCuda::set_capturing(StreamHandle stream, bool on) {
  if (on) {
    capturing_.insert(stream);
  } else {
    capturing_.erase(stream);
  }
}

int FakeCuda::current_device() {
  const std::lock_guard lock(mutex_);
  return current_[std::this_thread::get_id()];
}

void FakeCuda::set_current_device(int ordinal) {
  count("cudaSetDevice");
  const std::lock_guard lock(mutex_);
  current_[std::this_thread::get_id()] = ordinal;
}

PointerPlace FakeCuda::place_of(const void* address) {
  count("cudaPointerGetAttributes");
  const std::lock_guard lock(mutex_);
  for (const auto& [begin, memory] : device_memory_) {
    if (address >= begin && address < begin + memory.first) return {true, memory.second};
  }
  return {};
}

std::byte* FakeCuda::allocate_device(size_t bytes) {
  count("cudaMalloc");
  const std::lock_guard lock(mutex_);
  std::byte* memory = allocate(bytes);
  device_memory_[memory] = {bytes, place_};
  return memory;
}

void FakeCuda::free_device(std::byte* memory) noexcept {
  const std::lock_guard lock(mutex_);
  device_memory_.erase(memory);
  std::free(memory);
}

std::byte* FakeCuda::allocate_pinned(size_t bytes) {
  count("cudaHostAlloc");
  const std::lock_guard lock(mutex_);
  std::byte* memory = allocate(bytes);
  pinned_memory_[memory] = bytes;
  return memory;
}

void FakeCuda::free_pinned(std::byte* memory) noexcept {
  const std::lock_guard lock(mutex_);
  pinned_memory_.erase(memory);
  std::free(memory);
}

StreamHandle FakeCuda::create_stream() {
  count("cudaStreamCreateWithPriority");
  const std::lock_guard lock(mutex_);
  streams_[next_handle_];
  return next_handle_++;
}

void FakeCuda::destroy_stream(StreamHandle stream) noexcept {
  const std::lock_guard lock(mutex_);
  destroyed_.insert(stream);
  drop_if_over(stream);
}

void FakeCuda::drop_if_over(StreamHandle stream) {
  const auto found = streams_.find(stream);
  if (found == streams_.end() || !found->second.empty()) return;
  if (destroyed_.erase(stream) != 0) streams_.erase(found);
}

void FakeCuda::wait_for_stream(StreamHandle stream) {
  count("cudaStreamSynchronize");
  run_until([&] { return streams_.at(stream).empty(); });
}

bool FakeCuda::is_capturing(StreamHandle stream) { return capturing_.contains(stream); }

void FakeCuda::call_host(StreamHandle stream, void (*function)(void*), void* argument) {
  count("cudaLaunchHostFunc");
  put(stream, "host function", [=] { function(argument); });
  if (host_functions_at_once_) run_until([&] { return streams_.at(stream).empty(); });
}

EventHandle FakeCuda::create_event() {
  count("cudaEventCreateWithFlags");
  const std::lock_guard lock(mutex_);
  events_[next_handle_];
  return next_handle_++;
}

void FakeCuda::destroy_event(EventHandle event) noexcept {
  const std::lock_guard lock(mutex_);
  events_.erase(event);
}

void FakeCuda::record(EventHandle event, StreamHandle stream) {
  count("cudaEventRecord");
  const std::lock_guard lock(mutex_);
  const uint64_t generation = ++events_.at(event).recorded;
  events_.at(event).pending.insert(generation);
  put(stream, "", [this, event, generation] {
    const auto found = events_.find(event);
    if (found != events_.end()) found->second.pending.erase(generation);
  });
}

void FakeCuda::wait(StreamHandle stream, EventHandle event) {
  count("cudaStreamWaitEvent");
  const std::lock_guard lock(mutex_);
  streams_.at(stream).push_back({"", {}, event, events_.at(event).recorded});
}

bool FakeCuda::is_done(EventHandle event) {
  count("cudaEventQuery");
  const std::lock_guard lock(mutex_);
  return events_.at(event).is_done();
}

void FakeCuda::wait_for_event(EventHandle event) {
  count("cudaEventSynchronize");
  run_until([&] { return events_.at(event).is_done(); });
}

void FakeCuda::copy_to_device(std::byte* to, const std::byte* from, size_t bytes,
                              StreamHandle stream) {
  count("cudaMemcpyAsync");
  put(stream, "copy to device", [=] { std::copy_n(from, bytes, to); });
}

void FakeCuda::copy_to_host(std::byte* to, const std::byte* from, size_t bytes,
                            StreamHandle stream) {
  count("cudaMemcpyAsync");
  put(stream, "copy to host", [=] { std::copy_n(from, bytes, to); });
}

void FakeCuda::fill(std::byte* to, unsigned char value, size_t bytes, StreamHandle stream) {
  count("cudaMemsetAsync");
  put(stream, "fill", [=] { std::fill_n(to, bytes, std::byte{value}); });
}

void FakeCuda::launch(const PackLaunch& launch, StreamHandle stream) {
  count("pack");
  put(stream, "pack", [launch] {
    if (goes_by_blocks(launch.to)) return pack_by_blocks(launch);
    if (goes_by_blocks(launch.from)) return unpack_blocks(launch);
    for (uint32_t t = 0; t < launch.tiles.count; ++t) pack_tile(launch, launch.tiles.first + t);
  });
}

void FakeCuda::launch(const MixLaunch& launch, StreamHandle stream) {
  count("mix");
  put(stream, "mix", [launch] {
    if (launch.cancelled != nullptr && *launch.cancelled != 0) return;
    if (goes_by_blocks(launch.own) || launch.rounding_key != 0) return mix_on_host(launch);
    for (uint32_t t = 0; t < launch.tiles.count; ++t) mix_tile(launch, launch.tiles.first + t);
  });
}

}  // namespace crossover
