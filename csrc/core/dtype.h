// Element types of tensors and of the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace crossover {

/// Element type of a tensor, or of its image on the wire.
enum class Dtype : uint8_t {
  kFloat32 = 0,
  kFloat64 = 1,
  kFloat16 = 2,
  kBfloat16 = 3,
  /// On the wire only. Blocks of kInt8BlockNumel elements, counted from the segment's first; the
  /// last one may be shorter. A block is a float32 scale s and a signed byte q for each element,
  /// which stands for q s, exactly. s is the largest magnitude over 127, rounded up to 16 bits of
  /// precision; q is x (1 / s) in float32, rounded to nearest even. So Q is a pure function of a
  /// block, and Q(Q(x)) = Q(x). A block below 2^-100 is sent as zeros; one that holds a NaN or a
  /// magnitude from 2^127 on has a NaN for its scale. float64 is rounded to float32 first.
  kInt8Blocks = 4,
};

inline constexpr int64_t kInt8BlockNumel = 128;
inline constexpr int64_t kInt8ScaleBytes = 4;

/// Bytes of one element; scales of kInt8Blocks apart.
constexpr size_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    case Dtype::kFloat16:
    case Dtype::kBfloat16:
      return 2;
    case Dtype::kInt8Blocks:
      return 1;
  }
  return 0;
}

/// Messages are cut, and slices begin, at multiples of so many elements.
constexpr int64_t unit_numel(Dtype dtype) {
  return dtype == Dtype::kInt8Blocks ? kInt8BlockNumel : 1;
}

/// Bytes of a message of `numel` elements.
constexpr size_t packed_bytes(Dtype dtype, int64_t numel) {
  const int64_t num_scales =
      dtype == Dtype::kInt8Blocks ? (numel + kInt8BlockNumel - 1) / kInt8BlockNumel : 0;
  return static_cast<size_t>(numel) * dtype_bytes(dtype) +
         static_cast<size_t>(num_scales * kInt8ScaleBytes);
}

/// torch's name without the prefix: "float32", "bfloat16", ...; "int8-blocks".
std::string_view dtype_name(Dtype dtype);

/// Inverse of dtype_name. Throws InvalidArgument naming the known ones.
Dtype parse_dtype(std::string_view name);

/// The type in which a tensor of `tensor` travels when the plan's wire is `wire`: the narrower of
/// the two, so that a bf16 tensor is never widened and float64 keeps its precision under the
/// full-precision wire ("float32" asks for no cast). float16 and bfloat16 never turn into each
/// other: a 2-byte tensor travels as it is, or as kInt8Blocks.
Dtype wire_dtype(Dtype tensor, Dtype wire);

}  // namespace crossover
