// How tensors are cut into tiles, one block of a kernel each: the arithmetic that the kernels,
// their launcher and the tests share.
//
// A tensor begins a new tile, so a bias of 10 elements costs one block and an embedding spreads
// over the GPU. Tensors without elements have no tile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/program.h"

#if defined(__CUDACC__)
#define CROSSOVER_HOST_DEVICE __host__ __device__
#else
#define CROSSOVER_HOST_DEVICE
#endif

namespace crossover {

/// Elements of a tile, whatever their type; the last one of a tensor may be shorter.
inline constexpr int64_t kTileNumel = 4096;

/// One tensor of a segment.
struct TensorEntry {
  std::byte* data = nullptr;
  int64_t first_element = 0;  // in the segment
  int64_t numel = 0;
  uint32_t first_tile = 0;
};

/// The tensors of a segment as a kernel sees them.
struct TensorTable {
  const TensorEntry* tensors = nullptr;
  const uint32_t* tensor_of_tile = nullptr;
  uint32_t num_tensors = 1;
  TensorEntry only;  // the one tensor, if tensor_of_tile is null: needs no memory on the device
};

struct TileRange {
  uint32_t first = 0;
  uint32_t count = 0;
  bool operator==(const TileRange&) const = default;
};

/// What a tile holds of a slice.
struct TilePart {
  int64_t in_tensor = 0;   // its first element, counted in the tensor
  int64_t in_segment = 0;  // the same, counted in the segment
  int64_t numel = 0;       // 0 if the slice ends before the tile or begins after it
};

CROSSOVER_HOST_DEVICE constexpr int64_t num_tiles(int64_t numel) {
  return (numel + kTileNumel - 1) / kTileNumel;
}

/// Tiles for kernels that go by blocks of the segment, whichever tensors they lie in: tile i holds
/// the segment's elements from i kTileNumel on.
CROSSOVER_HOST_DEVICE constexpr TileRange segment_tiles(const Slice& slice) {
  if (slice.begin == slice.end) return {};
  const int64_t first = slice.begin / kTileNumel;
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(num_tiles(slice.end) - first)};
}

/// `tensor` holds tile `tile`; the slice is in elements of the segment.
CROSSOVER_HOST_DEVICE constexpr TilePart part_of_tile(const TensorEntry& tensor, uint32_t tile,
                                                      const Slice& slice) {
  int64_t begin = static_cast<int64_t>(tile - tensor.first_tile) * kTileNumel;
  int64_t end = begin + kTileNumel < tensor.numel ? begin + kTileNumel : tensor.numel;
  const int64_t slice_begin = slice.begin - tensor.first_element;
  const int64_t slice_end = slice.end - tensor.first_element;
  begin = begin > slice_begin ? begin : slice_begin;
  end = end < slice_end ? end : slice_end;
  return {begin, tensor.first_element + begin, end > begin ? end - begin : 0};
}

/// The tiles of tensors of given sizes, without their addresses.
class TileLayout {
 public:
  explicit TileLayout(std::span<const int64_t> numels);

  /// One per tensor, `data` null.
  std::span<const TensorEntry> tensors() const { return tensors_; }
  /// One per tile: the index of its tensor.
  std::span<const uint32_t> tensor_of_tile() const { return tensor_of_tile_; }
  int64_t numel() const { return numel_; }
  /// The tiles that hold a slice, which lies within the segment.
  TileRange range(const Slice& slice) const;

 private:
  uint32_t tile_of(int64_t element) const;

  std::vector<TensorEntry> tensors_;
  std::vector<uint32_t> tensor_of_tile_;
  int64_t numel_ = 0;
};

}  // namespace crossover
