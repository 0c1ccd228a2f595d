#include "core/plan.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace crossover {
namespace {

Segment segment(std::string name, Dtype dtype, std::vector<int64_t> numels) {
  std::vector<std::string> names(numels.size(), "t");
  return {std::move(name), dtype, std::move(numels), std::move(names)};
}

TEST(SegmentPlan, CountsTensorsAndBytes) {
  const SegmentPlan plan({segment("a", Dtype::kFloat32, {3, 0, 5}),
                          segment("b", Dtype::kFloat64, {2}), segment("c", Dtype::kBfloat16, {7})},
                         Dtype::kBfloat16, {2, 1, 0});
  EXPECT_EQ(plan.num_tensors(), 5u);
  EXPECT_EQ(plan.first_tensor(0), 0u);
  EXPECT_EQ(plan.first_tensor(1), 3u);
  EXPECT_EQ(plan.first_tensor(2), 4u);
  EXPECT_EQ(plan.segment(0).numel(), 8);
  EXPECT_EQ(plan.wire_bytes(), 8 * 2 + 2 * 2 + 7 * 2);
}

TEST(SegmentPlan, FullPrecisionWireNeverWidensOrNarrows) {
  EXPECT_EQ(wire_dtype(Dtype::kFloat64, Dtype::kFloat32), Dtype::kFloat64);
  EXPECT_EQ(wire_dtype(Dtype::kFloat32, Dtype::kFloat32), Dtype::kFloat32);
  EXPECT_EQ(wire_dtype(Dtype::kBfloat16, Dtype::kFloat32), Dtype::kBfloat16);
  EXPECT_EQ(wire_dtype(Dtype::kFloat16, Dtype::kBfloat16), Dtype::kFloat16);
  EXPECT_EQ(wire_dtype(Dtype::kFloat32, Dtype::kBfloat16), Dtype::kBfloat16);
}

TEST(SegmentPlan, AnIssueOrderThatIsNoPermutationIsRefused) {
  const auto make = [](std::vector<uint32_t> order) {
    SegmentPlan({segment("a", Dtype::kFloat32, {1}), segment("b", Dtype::kFloat32, {1})},
                Dtype::kFloat32, std::move(order));
  };
  EXPECT_THROW(make({0}), InvalidArgument);
  EXPECT_THROW(make({0, 0}), InvalidArgument);
  EXPECT_THROW(make({0, 2}), InvalidArgument);
  EXPECT_NO_THROW(make({1, 0}));
}

TEST(SegmentPlan, ANegativeNumberOfElementsIsNamed) {
  try {
    SegmentPlan({segment("block", Dtype::kFloat32, {4, -1})}, Dtype::kFloat32, {0});
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(),
                 "segment 0 'block': tensor 't': expected a number of elements >= 0, got -1");
  }
}

TEST(SegmentPlan, ATensorWithoutANameIsRefused) {
  Segment unnamed = segment("a", Dtype::kFloat32, {1, 2});
  unnamed.tensors.pop_back();
  EXPECT_THROW(SegmentPlan({unnamed}, Dtype::kFloat32, {0}), InvalidArgument);
}

}  // namespace
}  // namespace crossover
