// Element types of tensors and of the wire.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace crossover {

/// Element type of a tensor, or of its image on the wire. The values travel in message headers.
enum class Dtype : uint8_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBfloat16 = 3 };

/// Bytes of one element.
constexpr size_t dtype_bytes(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return 8;
    case Dtype::kFloat32:
      return 4;
    case Dtype::kFloat16:
    case Dtype::kBfloat16:
      return 2;
  }
  return 0;
}

/// torch's name without the prefix: "float32", "bfloat16", ...
std::string_view dtype_name(Dtype dtype);

/// Inverse of dtype_name. Throws InvalidArgument naming the known ones.
Dtype parse_dtype(std::string_view name);

/// The type in which a tensor of `tensor` travels when the plan's wire is `wire`: the narrower of
/// the two, so that a bf16 tensor is never widened and float64 keeps its precision under the
/// full-precision wire ("float32" asks for no cast). float16 and bfloat16 never turn into each
/// other: a 2-byte tensor travels as it is.
Dtype wire_dtype(Dtype tensor, Dtype wire);

}  // namespace crossover
