#include "cuda/tiles.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace crossover {

TileLayout::TileLayout(std::span<const int64_t> numels) {
  tensors_.reserve(numels.size());
  for (const int64_t numel : numels) {
    check(numel >= 0, "a tensor has no negative size");
    const size_t first_tile = tensor_of_tile_.size();
    const auto count = static_cast<size_t>(num_tiles(numel));
    check(count <= std::numeric_limits<int32_t>::max() - first_tile, "a kernel has 2^31 blocks");
    tensor_of_tile_.resize(first_tile + count, static_cast<uint32_t>(tensors_.size()));
    tensors_.push_back({nullptr, numel_, numel, static_cast<uint32_t>(first_tile)});
    numel_ += numel;
  }
}

uint32_t TileLayout::tile_of(int64_t element) const {
  const auto after = std::upper_bound(
      tensors_.begin(), tensors_.end(), element,
      [](int64_t wanted, const TensorEntry& tensor) { return wanted < tensor.first_element; });
  const TensorEntry& tensor = *std::prev(after);
  return tensor.first_tile + static_cast<uint32_t>((element - tensor.first_element) / kTileNumel);
}

TileRange TileLayout::range(const Slice& slice) const {
  check(slice.begin >= 0 && slice.begin <= slice.end && slice.end <= numel_,
        "a slice lies within its tensors");
  if (slice.begin == slice.end) return {};
  const uint32_t first = tile_of(slice.begin);
  return {first, tile_of(slice.end - 1) - first + 1};
}

}  // namespace crossover
