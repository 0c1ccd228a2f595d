#include "core/reduction.h"

#include <algorithm>
#include <array>
#include <string>

#include "core/error.h"

namespace crossover {
namespace {

constexpr std::array<std::string_view, 16> kElementNames{
    "float32", "float64", "float16", "bfloat16", "int8", "int16",     "int32",      "int64",
    "uint8",   "uint16",  "uint32",  "uint64",   "bool", "complex64", "complex128", "other"};
constexpr std::array<std::string_view, 9> kOpNames{"none", "sum", "average", "product", "min",
                                                   "max",  "and", "or",      "xor"};

}  // namespace

std::string_view element_name(ElementType type) {
  return kElementNames.at(static_cast<size_t>(type));
}

ElementType parse_element(std::string_view name) {
  const auto found = std::find(kElementNames.begin(), kElementNames.end() - 1, name);
  return static_cast<ElementType>(found - kElementNames.begin());
}

std::string_view reduce_op_name(ReduceOp op) { return kOpNames.at(static_cast<size_t>(op)); }

ReduceOp parse_reduce_op(std::string_view name) {
  const auto found = std::find(kOpNames.begin(), kOpNames.end(), name);
  if (found != kOpNames.end()) return static_cast<ReduceOp>(found - kOpNames.begin());
  std::string known;
  for (const std::string_view op : kOpNames) {
    known += (known.empty() ? "" : ", ") + std::string(op);
  }
  throw InvalidArgument("reduction: expected one of " + known + ", got '" + std::string(name) +
                        "'");
}

}  // namespace crossover
