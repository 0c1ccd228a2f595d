// What the device keeps about a segment's tensors: where its tiles are, and when they were packed.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/device.h"
#include "cuda/resources.h"
#include "cuda/tiles.h"

namespace crossover {

/// The addresses of a segment's tensors in device memory, for launches on one stream at a time.
class AddressTable {
 public:
  /// `layout` outlives the table.
  AddressTable(CudaRuntime& runtime, int ordinal, const TileLayout& layout);
  ~AddressTable();

  /// The table of `addresses` for the next launch on `stream`. Copies them to the device only if
  /// they have changed; waits for the device only if they change faster than it can follow.
  /// InvalidArgument if a tensor does not lie on the device.
  const TensorEntry* prepare(std::span<void* const> addresses, StreamHandle stream);
  /// After the launch.
  void used(StreamHandle stream) { used_.record(stream); }

 private:
  struct Upload {
    Upload(CudaRuntime& runtime, size_t bytes)
        : pinned(runtime, CudaMemoryKind::kPinned, bytes), done(runtime) {}
    CudaMemory pinned;
    CudaEvent done;
  };

  void check_places(std::span<void* const> addresses) const;
  void upload(std::span<void* const> addresses, StreamHandle stream);

  CudaRuntime& runtime_;
  const int ordinal_;
  const TileLayout& layout_;
  CudaMemory memory_;
  std::array<Upload, 2> uploads_;
  size_t next_upload_ = 0;
  std::vector<void*> addresses_;
  StreamHandle stream_ = 0;
  CudaEvent used_;
};

/// Packs come from the progress thread and mixes from the training thread, each with a table of its
/// own.
class CudaNotes final : public TensorNotes {
 public:
  /// Waits for the copy of the tiles to the device, by `stream`.
  CudaNotes(std::shared_ptr<CudaRuntime> runtime, int ordinal, std::span<const int64_t> numels,
            StreamHandle stream);
  ~CudaNotes() override;

  const TileLayout& layout() const { return layout_; }
  const uint32_t* tensor_of_tile() const;
  AddressTable& for_packs() { return for_packs_; }
  AddressTable& for_mixes() { return for_mixes_; }
  /// Recorded after each pack.
  CudaEvent& packed() { return packed_; }

 private:
  const std::shared_ptr<CudaRuntime> runtime_;
  const TileLayout layout_;
  CudaMemory tensor_of_tile_;
  AddressTable for_packs_;
  AddressTable for_mixes_;
  CudaEvent packed_;
};

/// The tensors as a kernel takes them.
struct BoundTensors {
  TensorTable table;
  TileRange tiles;
};

/// A single tensor that needs no notes: a buffer.
BoundTensors bind_single(std::byte* data, int64_t numel, const Slice& slice);
/// Tensors with notes, for a launch on `stream` by `addresses`, a table of these notes.
BoundTensors bind_noted(const TensorList& tensors, const Slice& slice, AddressTable& addresses,
                        StreamHandle stream);

}  // namespace crossover
