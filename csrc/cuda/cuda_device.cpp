#include "cuda/cuda_device.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "core/error.h"
#include "cuda/kernels.h"

namespace crossover {
namespace {

constexpr std::chrono::seconds kCancelTimeout{1};

CudaBuffer& as_cuda(DeviceBuffer& buffer) { return static_cast<CudaBuffer&>(buffer); }

/// From the first element of any message to the last.
Slice hull(std::span<const WeightedMessage> messages) {
  Slice slice = messages[0].slice;
  for (const WeightedMessage& message : messages) {
    slice.begin = std::min(slice.begin, message.slice.begin);
    slice.end = std::max(slice.end, message.slice.end);
  }
  return slice;
}

MixLaunch describe(Dtype tensor, Dtype own, std::span<const WeightedMessage> messages) {
  check(messages.size() <= kMaxMixMessages, "a mix takes at most 64 messages");
  MixLaunch launch;
  launch.slice = hull(messages);
  launch.tensor = tensor;
  launch.own = own;
  launch.message = messages[0].dtype;
  launch.num_messages = static_cast<int32_t>(messages.size());
  for (size_t j = 0; j < messages.size(); ++j) {
    check(messages[j].dtype == launch.message, "the messages of a mix are of one type");
    check(messages[j].buffer != nullptr, "a message names its buffer");
    launch.messages[j] = {messages[j].data, messages[j].slice, messages[j].weight};
  }
  check(can_mix(tensor, own, launch.message), "a message has the type sent, or that of the sum");
  return launch;
}

}  // namespace

CudaDevice::Cancellation::Cancellation(CudaRuntime& runtime)
    : stream(runtime), flag(runtime, CudaMemoryKind::kDevice, sizeof(uint32_t)) {
  runtime.fill(flag.data(), 0, flag.size_bytes(), stream.get());
  runtime.wait_for_stream(stream.get());
}

CudaDevice::CudaDevice(std::shared_ptr<CudaRuntime> runtime, int ordinal)
    : runtime_(std::move(runtime)), ordinal_(ordinal) {
  const int count = runtime_->device_count();
  if (ordinal < 0 || ordinal >= count) {
    throw InvalidArgument("cuda:" + std::to_string(ordinal) + ": expected one of the " +
                          std::to_string(count) + " devices that CUDA shows");
  }
  const DeviceScope scope(*runtime_, ordinal_);
  parts_ = std::make_unique<CudaParts>(runtime_, ordinal_);
  cancellation_ = std::make_unique<Cancellation>(*runtime_);
}

CudaDevice::~CudaDevice() {
  try {
    const DeviceScope scope(*runtime_, ordinal_);
    drain();
    runtime_->wait_for_stream(cancellation_->stream.get());
  } catch (const std::exception&) {
    // A device that has failed does nothing any more, so there is nothing to wait for.
    return;
  }
}

std::unique_ptr<DeviceBuffer> CudaDevice::allocate(size_t bytes) {
  const DeviceScope scope(*runtime_, ordinal_);
  return std::make_unique<CudaBuffer>(*runtime_, bytes);
}

std::unique_ptr<MessageSource> CudaDevice::source(const PackSpec& spec) {
  return std::make_unique<CudaSource>(*parts_, spec);
}

std::unique_ptr<MessageSink> CudaDevice::sink(DeviceBuffer& buffer, size_t num_bytes) {
  return std::make_unique<CudaSink>(*parts_, as_cuda(buffer), num_bytes);
}

std::unique_ptr<TensorNotes> CudaDevice::notes(std::span<const int64_t> numels) {
  const DeviceScope scope(*runtime_, ordinal_);
  return std::make_unique<CudaNotes>(runtime_, ordinal_, numels, parts_->packer.stream());
}

void CudaDevice::refuse_capture(StreamHandle stream, const char* what) {
  if (!runtime_->is_capturing(stream)) return;
  throw InvalidArgument(std::string(what) +
                        ": the training stream is being captured into a CUDA graph, which would "
                        "replay an old exchange; post and wait outside the capture");
}

std::shared_ptr<Fence> CudaDevice::fence(StreamHandle training_stream) {
  const DeviceScope scope(*runtime_, ordinal_);
  refuse_capture(training_stream, "post");
  const std::shared_ptr<CudaEvent> event = parts_->fences.take(
      [](CudaEvent&) { return true; }, [this] { return std::make_unique<CudaEvent>(*runtime_); });
  event->record(training_stream);
  return std::make_shared<CudaFence>(event);
}

BoundTensors CudaDevice::bind_for_mix(const TensorList& tensors, const Slice& slice,
                                      StreamHandle stream) {
  if (tensors.notes != nullptr) {
    auto& addresses = static_cast<CudaNotes&>(*tensors.notes).for_mixes();
    return bind_noted(tensors, slice, addresses, stream);
  }
  check(tensors.buffer != nullptr && tensors.addresses.size() == 1,
        "the user's tensors have notes");
  return bind_single(static_cast<std::byte*>(tensors.addresses[0]), tensors.numels[0], slice);
}

void CudaDevice::mix(const TensorList& tensors, Dtype own,
                     std::span<const WeightedMessage> messages) {
  if (!messages.empty()) enqueue_mix(tensors, describe(tensors.dtype, own, messages), messages);
}

void CudaDevice::replace(const TensorList& tensors, Dtype own,
                         std::span<const WeightedMessage> messages) {
  if (messages.empty()) return;
  MixLaunch described = describe(tensors.dtype, own, messages);
  described.replaces = true;
  for (int32_t j = 0; j < described.num_messages; ++j) described.messages[j].weight = 1.0;
  enqueue_mix(tensors, described, messages);
}

void CudaDevice::enqueue_mix(const TensorList& tensors, MixLaunch launch,
                             std::span<const WeightedMessage> messages) {
  const DeviceScope scope(*runtime_, ordinal_);
  const bool to_user = tensors.buffer == nullptr;
  const StreamHandle stream = to_user ? tensors.stream : parts_->packer.stream();
  if (to_user) refuse_capture(stream, "wait");
  const BoundTensors bound = bind_for_mix(tensors, launch.slice, stream);
  launch.table = bound.table;
  launch.tiles = goes_by_blocks(launch.own) ? segment_tiles(launch.slice) : bound.tiles;
  launch.rounding_key = launch.replaces ? 0 : tensors.rounding_key;
  launch.cancelled = reinterpret_cast<const uint32_t*>(cancellation_->flag.data());
  for (const WeightedMessage& message : messages) as_cuda(*message.buffer).written().hold(stream);
  auto* notes = static_cast<CudaNotes*>(tensors.notes);
  if (notes != nullptr) notes->packed().hold(stream);
  runtime_->launch(launch, stream);
  for (const WeightedMessage& message : messages) as_cuda(*message.buffer).read().record(stream);
  if (notes != nullptr) notes->for_mixes().used(stream);
  if (!to_user) as_cuda(*tensors.buffer).written().record(stream);
}

void CudaDevice::widen(const PackSpec& spec, DeviceBuffer& scratch, DeviceBuffer& work) {
  const DeviceScope scope(*runtime_, ordinal_);
  const bool wide = spec.tensors.dtype == Dtype::kFloat64;
  const Dtype dtype = wide ? Dtype::kFloat64 : Dtype::kFloat32;
  const int64_t numel = spec.slice.numel();
  check(packed_bytes(spec.wire, numel) <= scratch.size_bytes() &&
            packed_bytes(dtype, numel) <= work.size_bytes(),
        "widen() is given buffers of sufficient size");
  Packer& packer = parts_->packer;
  as_cuda(work).read().hold(packer.stream());
  const bool in_two_steps = spec.wire != dtype;
  packer.watch(packer.pack(spec, in_two_steps ? scratch.data() : work.data()));
  if (in_two_steps) packer.widen(scratch, spec.wire, work, dtype, numel);
  as_cuda(work).written().record(packer.stream());
}

void CudaDevice::poll() {
  const DeviceScope scope(*runtime_, ordinal_);
  if (!std::exchange(ignores_captures_, true)) runtime_->ignore_captures_of_other_threads();
  parts_->packer.poll();
}

void CudaDevice::set_waker(std::function<void()> wake) {
  parts_->staging.waker.set(std::move(wake));
}

void CudaDevice::on_cancelled(void* cancellation) {
  auto& self = *static_cast<Cancellation*>(cancellation);
  const std::lock_guard lock(self.mutex);
  self.noted = true;
  self.changed.notify_all();
}

void CudaDevice::cancel_mixes() noexcept {
  Cancellation& cancellation = *cancellation_;
  try {
    const DeviceScope scope(*runtime_, ordinal_);
    runtime_->fill(cancellation.flag.data(), 1, cancellation.flag.size_bytes(),
                   cancellation.stream.get());
    runtime_->call_host(cancellation.stream.get(), &CudaDevice::on_cancelled, &cancellation);
    std::unique_lock lock(cancellation.mutex);
    cancellation.changed.wait_for(lock, kCancelTimeout, [&] { return cancellation.noted; });
  } catch (const std::exception&) {
    // The failure that led here is told already; a device that takes no work mixes nothing either.
    return;
  }
}

void CudaDevice::drain() {
  const DeviceScope scope(*runtime_, ordinal_);
  runtime_->wait_for_stream(parts_->packer.stream());
  runtime_->wait_for_stream(parts_->staging.out.get());
  runtime_->wait_for_stream(parts_->staging.in.get());
}

}  // namespace crossover
