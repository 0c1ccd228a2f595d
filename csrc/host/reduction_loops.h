// The loops of the reductions, one source for every instruction set; see kernel_elements.h for why
// everything is internal. Included once by each reduction_<level>.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "host/kernel_elements.h"
#include "host/reduction_table.h"

namespace crossover {
namespace {  // NOLINT(google-build-namespaces)

/// An integer type; sums and products are taken of its unsigned form, which may wrap.
template <class T>
struct Integer {
  using Bits = T;
};

template <class T>
using Unsigned = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <ReduceOp op, class T>
T combined_integers(T a, T b) {
  using U = Unsigned<T>;
  if constexpr (op == ReduceOp::kSum) return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  if constexpr (op == ReduceOp::kProduct)
    return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
  if constexpr (op == ReduceOp::kMin) return b < a ? b : a;
  if constexpr (op == ReduceOp::kMax) return a < b ? b : a;
  if constexpr (op == ReduceOp::kAnd) return static_cast<T>(a & b);
  if constexpr (op == ReduceOp::kOr) return static_cast<T>(a | b);
  if constexpr (op == ReduceOp::kXor) return static_cast<T>(a ^ b);
}

template <ReduceOp op, class A>
A combined_numbers(A a, A b) {
  if constexpr (op == ReduceOp::kSum || op == ReduceOp::kAverage) return a + b;
  if constexpr (op == ReduceOp::kProduct) return a * b;
  if constexpr (op == ReduceOp::kMin) return (a != a || a < b) ? a : b;
  if constexpr (op == ReduceOp::kMax) return (a != a || b < a) ? a : b;
}

template <ReduceOp op, class T>
void combine_integers(std::byte* __restrict into, const std::byte* __restrict with, int64_t numel) {
  for (int64_t k = 0; k < numel; ++k) {
    store<Integer<T>>(
        into, k, combined_integers<op, T>(load<Integer<T>>(into, k), load<Integer<T>>(with, k)));
  }
}

template <ReduceOp op, class E>
void combine_numbers(std::byte* __restrict into, const std::byte* __restrict with, int64_t numel) {
  using A = typename E::Arithmetic;
  for (int64_t k = 0; k < numel; ++k) {
    const A a = E::template decode<A>(load<E>(into, k));
    const A b = E::template decode<A>(load<E>(with, k));
    store<E>(into, k, E::template encode<A>(combined_numbers<op, A>(a, b)));
  }
}

template <class E>
void divide_numbers(std::byte* x, int64_t numel, int divisor) {
  using A = typename E::Arithmetic;
  const A by = static_cast<A>(divisor);
  for (int64_t k = 0; k < numel; ++k) {
    store<E>(x, k, E::template encode<A>(E::template decode<A>(load<E>(x, k)) / by));
  }
}

constexpr size_t at(ReduceOp op) { return static_cast<size_t>(op); }

template <class E>
constexpr void fill_numbers(ReductionTable& table, ElementType type) {
  const auto row = static_cast<size_t>(type);
  table.combine[row][at(ReduceOp::kSum)] = combine_numbers<ReduceOp::kSum, E>;
  table.combine[row][at(ReduceOp::kAverage)] = combine_numbers<ReduceOp::kAverage, E>;
  table.combine[row][at(ReduceOp::kProduct)] = combine_numbers<ReduceOp::kProduct, E>;
  table.combine[row][at(ReduceOp::kMin)] = combine_numbers<ReduceOp::kMin, E>;
  table.combine[row][at(ReduceOp::kMax)] = combine_numbers<ReduceOp::kMax, E>;
  table.divide[row] = divide_numbers<E>;
}

template <class T>
constexpr void fill_integers(ReductionTable& table, ElementType type) {
  const auto row = static_cast<size_t>(type);
  table.combine[row][at(ReduceOp::kSum)] = combine_integers<ReduceOp::kSum, T>;
  table.combine[row][at(ReduceOp::kProduct)] = combine_integers<ReduceOp::kProduct, T>;
  table.combine[row][at(ReduceOp::kMin)] = combine_integers<ReduceOp::kMin, T>;
  table.combine[row][at(ReduceOp::kMax)] = combine_integers<ReduceOp::kMax, T>;
  table.combine[row][at(ReduceOp::kAnd)] = combine_integers<ReduceOp::kAnd, T>;
  table.combine[row][at(ReduceOp::kOr)] = combine_integers<ReduceOp::kOr, T>;
  table.combine[row][at(ReduceOp::kXor)] = combine_integers<ReduceOp::kXor, T>;
}

consteval ReductionTable make_reductions() {
  ReductionTable table{};
  fill_numbers<Float32>(table, ElementType::kFloat32);
  fill_numbers<Float64>(table, ElementType::kFloat64);
  fill_numbers<Float16>(table, ElementType::kFloat16);
  fill_numbers<Bfloat16>(table, ElementType::kBfloat16);
  fill_integers<int8_t>(table, ElementType::kInt8);
  fill_integers<int16_t>(table, ElementType::kInt16);
  fill_integers<int32_t>(table, ElementType::kInt32);
  fill_integers<int64_t>(table, ElementType::kInt64);
  fill_integers<uint8_t>(table, ElementType::kUint8);
  fill_integers<uint16_t>(table, ElementType::kUint16);
  fill_integers<uint32_t>(table, ElementType::kUint32);
  fill_integers<uint64_t>(table, ElementType::kUint64);
  return table;
}

constexpr ReductionTable kReductions = make_reductions();

}  // namespace
}  // namespace crossover
