#include "cuda/cuda_tables.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"

namespace crossover {

AddressTable::AddressTable(CudaRuntime& runtime, int ordinal, const TileLayout& layout)
    : runtime_(runtime),
      ordinal_(ordinal),
      layout_(layout),
      memory_(runtime, CudaMemoryKind::kDevice, layout.tensors().size_bytes()),
      uploads_{Upload(runtime, memory_.size_bytes()), Upload(runtime, memory_.size_bytes())},
      used_(runtime) {}

AddressTable::~AddressTable() { used_.settle(); }

const TensorEntry* AddressTable::prepare(std::span<void* const> addresses, StreamHandle stream) {
  check(addresses.size() == layout_.tensors().size(), "an address per tensor");
  if (stream != stream_) used_.hold(stream);
  stream_ = stream;
  if (!std::equal(addresses.begin(), addresses.end(), addresses_.begin(), addresses_.end())) {
    check_places(addresses);
    upload(addresses, stream);
    addresses_.assign(addresses.begin(), addresses.end());
  }
  return reinterpret_cast<const TensorEntry*>(memory_.data());
}

void AddressTable::check_places(std::span<void* const> addresses) const {
  for (size_t i = 0; i < addresses.size(); ++i) {
    if (layout_.tensors()[i].numel == 0) continue;
    const PointerPlace place = runtime_.place_of(addresses[i]);
    if (place.on_device && place.ordinal == ordinal_) continue;
    const std::string where =
        place.on_device ? "cuda:" + std::to_string(place.ordinal) : std::string("host memory");
    throw InvalidArgument("tensor " + std::to_string(i) +
                          " of the segment: expected it on cuda:" + std::to_string(ordinal_) +
                          ", the one device of this process, got " + where);
  }
}

// In the order of the stream: a kernel that reads the old addresses goes first.
void AddressTable::upload(std::span<void* const> addresses, StreamHandle stream) {
  Upload& upload = uploads_[next_upload_];
  next_upload_ = (next_upload_ + 1) % uploads_.size();
  if (!upload.done.is_done()) upload.done.wait();
  for (size_t i = 0; i < addresses.size(); ++i) {
    TensorEntry entry = layout_.tensors()[i];
    entry.data = static_cast<std::byte*>(addresses[i]);
    std::memcpy(upload.pinned.data() + i * sizeof(entry), &entry, sizeof(entry));
  }
  runtime_.copy_to_device(memory_.data(), upload.pinned.data(), memory_.size_bytes(), stream);
  upload.done.record(stream);
}

CudaNotes::CudaNotes(std::shared_ptr<CudaRuntime> runtime, int ordinal,
                     std::span<const int64_t> numels, StreamHandle stream)
    : runtime_(std::move(runtime)),
      layout_(numels),
      tensor_of_tile_(*runtime_, CudaMemoryKind::kDevice, layout_.tensor_of_tile().size_bytes()),
      for_packs_(*runtime_, ordinal, layout_),
      for_mixes_(*runtime_, ordinal, layout_),
      packed_(*runtime_) {
  if (tensor_of_tile_.size_bytes() == 0) return;
  const CudaMemory pinned(*runtime_, CudaMemoryKind::kPinned, tensor_of_tile_.size_bytes());
  std::memcpy(pinned.data(), layout_.tensor_of_tile().data(), pinned.size_bytes());
  runtime_->copy_to_device(tensor_of_tile_.data(), pinned.data(), pinned.size_bytes(), stream);
  runtime_->wait_for_stream(stream);
}

CudaNotes::~CudaNotes() { packed_.settle(); }

const uint32_t* CudaNotes::tensor_of_tile() const {
  return reinterpret_cast<const uint32_t*>(tensor_of_tile_.data());
}

BoundTensors bind_single(std::byte* data, int64_t numel, const Slice& slice) {
  check(slice.begin >= 0 && slice.begin <= slice.end && slice.end <= numel,
        "a slice lies within its tensor");
  BoundTensors bound;
  bound.table.only = {data, 0, numel, 0};
  bound.tiles = segment_tiles(slice);
  return bound;
}

BoundTensors bind_noted(const TensorList& tensors, const Slice& slice, AddressTable& addresses,
                        StreamHandle stream) {
  auto& notes = static_cast<CudaNotes&>(*tensors.notes);
  BoundTensors bound;
  bound.tiles = notes.layout().range(slice);
  if (bound.tiles.count == 0) return bound;
  bound.table.tensors = addresses.prepare(tensors.addresses, stream);
  bound.table.tensor_of_tile = notes.tensor_of_tile();
  bound.table.num_tensors = static_cast<uint32_t>(tensors.numels.size());
  return bound;
}

}  // namespace crossover
