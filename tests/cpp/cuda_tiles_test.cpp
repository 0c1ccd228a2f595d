#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/error.h"
#include "cuda/cuda_tables.h"
#include "cuda/kernels.h"
#include "cuda/tiles.h"

namespace crossover {
namespace {

using Numels = std::vector<int64_t>;

/// How often each element of a slice is visited by the tiles of its range, as a kernel would.
std::vector<int> visits(const TileLayout& layout, const Slice& slice) {
  std::vector<int> counts(static_cast<size_t>(layout.numel()), 0);
  const TileRange range = layout.range(slice);
  for (uint32_t tile = range.first; tile < range.first + range.count; ++tile) {
    const TensorEntry& tensor = layout.tensors()[layout.tensor_of_tile()[tile]];
    const TilePart part = part_of_tile(tensor, tile, slice);
    EXPECT_GT(part.numel, 0);
    EXPECT_LE(part.numel, kTileNumel);
    EXPECT_GE(part.in_tensor, 0);
    EXPECT_LE(part.in_tensor + part.numel, tensor.numel);
    EXPECT_EQ(part.in_segment, tensor.first_element + part.in_tensor);
    for (int64_t k = 0; k < part.numel; ++k) ++counts[static_cast<size_t>(part.in_segment + k)];
  }
  return counts;
}

void expect_each_element_once(const Numels& numels, const Slice& slice) {
  const TileLayout layout(numels);
  const std::vector<int> counts = visits(layout, slice);
  for (int64_t k = 0; k < layout.numel(); ++k) {
    const int wanted = k >= slice.begin && k < slice.end ? 1 : 0;
    ASSERT_EQ(counts[static_cast<size_t>(k)], wanted)
        << "element " << k << " of [" << slice.begin << ", " << slice.end << ")";
  }
}

TEST(Tiles, HoldEachElementOfTensorsOfAwkwardSizesOnce) {
  for (const int64_t numel : {int64_t{0}, int64_t{1}, int64_t{7}, kTileNumel - 1, kTileNumel,
                              kTileNumel + 1, 3 * kTileNumel + 5}) {
    expect_each_element_once({numel}, {0, numel});
    expect_each_element_once({3, numel, 0, 5}, {0, numel + 8});
    expect_each_element_once({0, numel, numel, 0}, {0, 2 * numel});
  }
}

TEST(Tiles, HoldExactlyTheElementsOfASlice) {
  const Numels numels{10, 0, kTileNumel + 3, 1, 2 * kTileNumel, 0, 17};
  const int64_t total = TileLayout(numels).numel();
  std::mt19937_64 random(5);
  for (int trial = 0; trial < 200; ++trial) {
    const auto a = static_cast<int64_t>(random() % static_cast<uint64_t>(total + 1));
    const auto b = static_cast<int64_t>(random() % static_cast<uint64_t>(total + 1));
    expect_each_element_once(numels, {std::min(a, b), std::max(a, b)});
  }
}

TEST(Tiles, OfManyTensorsAreInTheOrderOfTheTensors) {
  Numels numels(5000);
  for (size_t i = 0; i < numels.size(); ++i) numels[i] = static_cast<int64_t>(i % 7) * 1000;
  const TileLayout layout(numels);
  expect_each_element_once(numels, {0, layout.numel()});
  uint32_t last = 0;
  for (const uint32_t tensor : layout.tensor_of_tile()) {
    EXPECT_GE(tensor, last);
    EXPECT_GT(numels[tensor], 0);
    last = tensor;
  }
}

TEST(Tiles, OfASmallTensorCostOneBlockEach) {
  const TileLayout layout(Numels(161, 10));
  EXPECT_EQ(layout.range({0, 1610}), (TileRange{0, 161}));
  EXPECT_EQ(layout.range({10, 20}), (TileRange{1, 1}));
}

TEST(Tiles, OfAnEmptySliceAreNone) {
  const TileLayout layout(Numels{4, 0, 4});
  EXPECT_EQ(layout.range({4, 4}).count, 0U);
  EXPECT_EQ(TileLayout(Numels{}).range({0, 0}).count, 0U);
}

TEST(Tiles, RefuseASliceOutsideTheTensors) {
  const TileLayout layout(Numels{4, 4});
  EXPECT_THROW(layout.range({0, 9}), std::logic_error);
  EXPECT_THROW(layout.range({-1, 2}), std::logic_error);
  EXPECT_THROW(layout.range({3, 2}), std::logic_error);
}

TEST(Tiles, OfASingleTensorNeedNoTable) {
  const int64_t numel = 3 * kTileNumel + 1;
  std::byte memory{};
  for (const Slice slice : {Slice{0, numel}, Slice{5, 6}, Slice{kTileNumel, 2 * kTileNumel},
                            Slice{kTileNumel - 1, kTileNumel + 1}, Slice{9, 9}}) {
    const BoundTensors bound = bind_single(&memory, numel, slice);
    EXPECT_EQ(bound.tiles.count, TileLayout(Numels{numel}).range(slice).count);
    EXPECT_EQ(bound.table.tensor_of_tile, nullptr);
    int64_t held = 0;
    for (uint32_t t = 0; t < bound.tiles.count; ++t) {
      held += part_of_tile(bound.table.only, bound.tiles.first + t, slice).numel;
    }
    EXPECT_EQ(held, slice.numel());
  }
}

TEST(Kernels, ExistForEveryTypeAndItsWireTypeAndNoOther) {
  constexpr Dtype kAll[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16};
  for (const Dtype tensor : kAll) {
    const Dtype sum = tensor == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
    for (const Dtype asked : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16,
                              Dtype::kInt8Blocks}) {
      const Dtype wire = wire_dtype(tensor, asked);
      EXPECT_TRUE(can_pack(tensor, wire));
      EXPECT_TRUE(can_pack(wire, sum) || wire == sum);
      EXPECT_TRUE(can_pack(sum, wire));
      EXPECT_TRUE(can_mix(tensor, wire, wire));
      EXPECT_TRUE(can_mix(tensor, wire, sum));
      EXPECT_TRUE(can_mix(sum, wire, wire));
    }
  }
  EXPECT_FALSE(can_pack(Dtype::kFloat16, Dtype::kBfloat16));
  EXPECT_FALSE(can_mix(Dtype::kFloat16, Dtype::kBfloat16, Dtype::kBfloat16));
  EXPECT_FALSE(can_mix(Dtype::kFloat32, Dtype::kFloat32, Dtype::kBfloat16));
}

}  // namespace
}  // namespace crossover
