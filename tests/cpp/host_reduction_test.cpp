// The reductions' loops at every instruction set, against scalar arithmetic.
#include "host/host_reduction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.h"

namespace crossover {
namespace {

std::vector<SimdLevel> levels() {
  if (simd_level() == SimdLevel::kPortable) return {SimdLevel::kPortable};
  return {SimdLevel::kPortable, simd_level()};
}

template <class T>
std::vector<T> combined(ElementType type, ReduceOp op, std::vector<T> into,
                        const std::vector<T>& with, SimdLevel level) {
  host_reduction(type, op, level)
      .combine(reinterpret_cast<std::byte*>(into.data()),
               reinterpret_cast<const std::byte*>(with.data()), static_cast<int64_t>(into.size()));
  return into;
}

TEST(HostReduction, IntegersWrapAndCompare) {
  const std::vector<int8_t> a{100, -128, 7, -1, 0, 5, 3, 2, 1};
  const std::vector<int8_t> b{100, -1, -7, 1, 0, 6, 2, 3, 127};
  for (const SimdLevel level : levels()) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kProduct, ReduceOp::kMin, ReduceOp::kMax,
                              ReduceOp::kAnd, ReduceOp::kOr, ReduceOp::kXor}) {
      const auto found = combined<int8_t>(ElementType::kInt8, op, a, b, level);
      for (size_t k = 0; k < a.size(); ++k) {
        int wanted = 0;
        if (op == ReduceOp::kSum) wanted = a[k] + b[k];
        if (op == ReduceOp::kProduct) wanted = a[k] * b[k];
        if (op == ReduceOp::kMin) wanted = std::min(a[k], b[k]);
        if (op == ReduceOp::kMax) wanted = std::max(a[k], b[k]);
        if (op == ReduceOp::kAnd) wanted = a[k] & b[k];
        if (op == ReduceOp::kOr) wanted = a[k] | b[k];
        if (op == ReduceOp::kXor) wanted = a[k] ^ b[k];
        EXPECT_EQ(found[k], static_cast<int8_t>(wanted)) << reduce_op_name(op) << " " << k;
      }
    }
  }
}

TEST(HostReduction, ANanOnEitherSideStays) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const SimdLevel level : levels()) {
    for (const ReduceOp op : {ReduceOp::kMin, ReduceOp::kMax, ReduceOp::kSum, ReduceOp::kProduct}) {
      const auto found =
          combined<float>(ElementType::kFloat32, op, {nan, 1.0f}, {1.0f, nan}, level);
      EXPECT_TRUE(std::isnan(found[0]) && std::isnan(found[1])) << reduce_op_name(op);
    }
  }
}

TEST(HostReduction, EveryLevelGivesTheSameBits) {
  std::vector<uint16_t> a(1027);
  std::vector<uint16_t> b(1027);
  for (size_t k = 0; k < a.size(); ++k) {
    a[k] = static_cast<uint16_t>(k * 61);
    b[k] = static_cast<uint16_t>(k * 17 + 3);
    if ((a[k] & 0x7c00) == 0x7c00) a[k] = 0x3c00;
    if ((b[k] & 0x7c00) == 0x7c00) b[k] = 0x3c00;
  }
  for (const ElementType type : {ElementType::kFloat16, ElementType::kBfloat16}) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kProduct, ReduceOp::kMax}) {
      const auto portable = combined<uint16_t>(type, op, a, b, SimdLevel::kPortable);
      EXPECT_EQ(combined<uint16_t>(type, op, a, b, simd_level()), portable);
    }
  }
}

TEST(HostReduction, AnAverageDividesTheSum) {
  std::vector<double> x{1.0, 2.0, 7.0};
  const Reduction average = host_reduction(ElementType::kFloat64, ReduceOp::kAverage);
  average.divide(reinterpret_cast<std::byte*>(x.data()), 3, 3);
  EXPECT_EQ(x, (std::vector<double>{1.0 / 3.0, 2.0 / 3.0, 7.0 / 3.0}));
}

TEST(HostReduction, WhatHasNoMeaningIsRefusedByName) {
  EXPECT_THROW(host_reduction(ElementType::kFloat32, ReduceOp::kXor), InvalidArgument);
  EXPECT_THROW(host_reduction(ElementType::kInt32, ReduceOp::kAverage), InvalidArgument);
  EXPECT_THROW(host_reduction(ElementType::kOther, ReduceOp::kSum), InvalidArgument);
  EXPECT_EQ(host_reduction(ElementType::kComplex128, ReduceOp::kNone).element_bytes, 16u);
}

}  // namespace
}  // namespace crossover
