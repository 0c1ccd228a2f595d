// What a collective's elements are and how two of them become one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace crossover {

/// Element type of a collective; the order is on the wire. kOther moves, but is never reduced.
enum class ElementType : uint8_t {
  kFloat32,
  kFloat64,
  kFloat16,
  kBfloat16,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUint8,
  kUint16,
  kUint32,
  kUint64,
  kBool,
  kComplex64,
  kComplex128,
  kOther,
};

/// The order is on the wire. kNone: nothing is reduced.
enum class ReduceOp : uint8_t { kNone, kSum, kAverage, kProduct, kMin, kMax, kAnd, kOr, kXor };

/// torch's name without the prefix: "float32", ...; "other".
std::string_view element_name(ElementType type);
/// Inverse of element_name; kOther for a name that it does not know.
ElementType parse_element(std::string_view name);

/// "sum", "average", ...
std::string_view reduce_op_name(ReduceOp op);
/// Inverse of reduce_op_name. Throws InvalidArgument naming the known ones.
ReduceOp parse_reduce_op(std::string_view name);

/// How elements of one type are reduced, made by the host for a type and an operation. Buffers may
/// be unaligned and must not overlap.
struct Reduction {
  /// into[k] <- into[k] op with[k] for k < numel, rounded to the type each time.
  using Combine = void (*)(std::byte* into, const std::byte* with, int64_t numel);
  /// x[k] <- x[k] / divisor.
  using Divide = void (*)(std::byte* x, int64_t numel, int divisor);
  size_t element_bytes = 1;
  Combine combine = nullptr;
  Divide divide = nullptr;  // null unless an average is wanted
};

}  // namespace crossover
