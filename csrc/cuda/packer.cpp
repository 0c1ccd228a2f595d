#include "cuda/packer.h"

#include <cstring>
#include <utility>

#include "core/error.h"

namespace crossover {
namespace {

/// A buffer serves messages of its own size, and others of more than half of it.
bool fits(size_t buffer_bytes, size_t bytes) {
  return buffer_bytes >= bytes && (buffer_bytes == bytes || buffer_bytes / 2 < bytes);
}

}  // namespace

PackResult::PackResult(CudaRuntime& runtime)
    : packed_(runtime),
      counter_(runtime, CudaMemoryKind::kDevice, sizeof(NonFiniteFound)),
      counter_copy_(runtime, CudaMemoryKind::kPinned, sizeof(NonFiniteFound)) {
  const NonFiniteFound none;
  std::memcpy(counter_copy_.data(), &none, sizeof(none));
}

NonFiniteFound PackResult::found_so_far() const {
  NonFiniteFound found;
  std::memcpy(&found, counter_copy_.data(), sizeof(found));
  return found;
}

void PackResult::begin(const PackSpec& spec) {
  found_before_ = found_so_far().count;
  policy_ = spec.non_finite;
  tensor_ = spec.tensors.dtype;
  wire_ = spec.wire;
  where_ = spec.where;
  names_.assign(spec.names.begin(), spec.names.end());
}

void PackResult::check_found() const {
  const NonFiniteFound found = found_so_far();
  const unsigned long long count = found.count - found_before_;
  if (count == 0 || policy_ == NonFinitePolicy::kIgnore) return;
  const std::string first = found.first_tensor < names_.size()
                                ? "parameter '" + names_[found.first_tensor] + "'"
                                : "tensor " + std::to_string(found.first_tensor);
  throw NonFiniteError(where_ + ": holds " + spell_non_finite(count, tensor_, wire_) +
                       ", first in " + first);
}

std::shared_ptr<CudaBuffer> Packer::take_buffer(size_t bytes) {
  auto buffer =
      buffers_.take([bytes](CudaBuffer& free) { return fits(free.size_bytes(), bytes); },
                    [this, bytes] { return std::make_unique<CudaBuffer>(*runtime_, bytes); });
  buffer->read().hold(stream());
  return buffer;
}

std::shared_ptr<PackResult> Packer::take_result() {
  return results_.take([](PackResult& free) { return free.packed().is_done(); },
                       [this] {
                         auto made = std::make_unique<PackResult>(*runtime_);
                         runtime_->copy_to_device(made->counter_.data(), made->counter_copy_.data(),
                                                  made->counter_.size_bytes(), stream());
                         return made;
                       });
}

BoundTensors Packer::bind(const PackSpec& spec) {
  const TensorList& tensors = spec.tensors;
  check(can_pack(tensors.dtype, spec.wire), "a tensor travels in its type or a narrower one");
  check(spec.slice.begin % unit_numel(spec.wire) == 0, "a slice begins with a unit of its codec");
  if (tensors.notes != nullptr) {
    AddressTable& addresses = static_cast<CudaNotes&>(*tensors.notes).for_packs();
    return bind_noted(tensors, spec.slice, addresses, stream());
  }
  check(tensors.addresses.size() == 1, "several tensors have notes");
  return bind_single(static_cast<std::byte*>(tensors.addresses[0]), tensors.numels[0], spec.slice);
}

std::shared_ptr<PackResult> Packer::pack(const PackSpec& spec, std::byte* out) {
  const BoundTensors bound = bind(spec);
  const std::shared_ptr<PackResult> result = take_result();
  result->begin(spec);
  PackLaunch launch;
  launch.table = bound.table;
  launch.tiles = goes_by_blocks(spec.wire) ? segment_tiles(spec.slice) : bound.tiles;
  launch.slice = spec.slice;
  launch.out = out;
  launch.found = reinterpret_cast<NonFiniteFound*>(result->counter_.data());
  launch.from = spec.tensors.dtype;
  launch.to = spec.wire;
  if (spec.after) static_cast<const CudaFence&>(*spec.after).event().hold(stream());
  runtime_->launch(launch, stream());
  if (auto* notes = static_cast<CudaNotes*>(spec.tensors.notes)) {
    notes->for_packs().used(stream());
    notes->packed().record(stream());
  }
  runtime_->copy_to_host(result->counter_copy_.data(), result->counter_.data(),
                         result->counter_.size_bytes(), stream());
  result->packed_.record(stream());
  return result;
}

void Packer::widen(DeviceBuffer& packed, Dtype wire, DeviceBuffer& work, Dtype dtype,
                   int64_t numel) {
  const Slice whole{0, numel};
  const BoundTensors bound = bind_single(packed.data(), numel, whole);
  PackLaunch launch;
  launch.table = bound.table;
  launch.tiles = bound.tiles;
  launch.slice = whole;
  launch.out = work.data();
  launch.from = wire;
  launch.to = dtype;
  runtime_->launch(launch, stream());
}

void Packer::poll() {
  for (size_t i = 0; i < watched_.size();) {
    if (!watched_[i]->packed().is_done()) {
      ++i;
      continue;
    }
    const std::shared_ptr<PackResult> result =
        std::exchange(watched_[i], std::move(watched_.back()));
    watched_.pop_back();
    result->check_found();
  }
}

}  // namespace crossover
