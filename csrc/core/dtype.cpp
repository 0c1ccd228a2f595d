#include "core/dtype.h"

#include <array>

#include "core/error.h"

namespace crossover {
namespace {

struct Named {
  Dtype dtype;
  std::string_view name;
};
constexpr std::array<Named, 5> kNames{{{Dtype::kFloat32, "float32"},
                                       {Dtype::kFloat64, "float64"},
                                       {Dtype::kFloat16, "float16"},
                                       {Dtype::kBfloat16, "bfloat16"},
                                       {Dtype::kInt8Blocks, "int8-blocks"}}};

}  // namespace

std::string_view dtype_name(Dtype dtype) {
  for (const Named& entry : kNames) {
    if (entry.dtype == dtype) return entry.name;
  }
  return "unknown";
}

Dtype parse_dtype(std::string_view name) {
  std::string known;
  for (const Named& entry : kNames) {
    if (entry.name == name) return entry.dtype;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw InvalidArgument("dtype: expected one of " + known + "; got '" + std::string(name) + "'");
}

Dtype wire_dtype(Dtype tensor, Dtype wire) {
  if (wire == Dtype::kFloat32 || dtype_bytes(wire) >= dtype_bytes(tensor)) return tensor;
  return wire;
}

}  // namespace crossover
