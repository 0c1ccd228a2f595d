#include "host/host_reduction.h"

#include <array>
#include <string>

#include "core/error.h"
#include "host/reduction_table.h"

namespace crossover {
namespace {

constexpr std::array<size_t, 16> kElementBytes{4, 8, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1, 8, 16, 1};

const ReductionTable& reductions([[maybe_unused]] SimdLevel level) {
#if defined(CROSSOVER_X86_64)
  if (level != SimdLevel::kPortable) return avx2_reductions();
#endif
  return portable_reductions();
}

}  // namespace

Reduction host_reduction(ElementType type, ReduceOp op, SimdLevel level) {
  Reduction made;
  const auto row = static_cast<size_t>(type);
  made.element_bytes = kElementBytes.at(row);
  if (op == ReduceOp::kNone) return made;
  const ReductionTable& table = reductions(level);
  if (row < kNumReducedTypes) made.combine = table.combine[row][static_cast<size_t>(op)];
  if (!made.combine) {
    throw InvalidArgument("reduction '" + std::string(reduce_op_name(op)) +
                          "' has no meaning for elements of " + std::string(element_name(type)));
  }
  if (op == ReduceOp::kAverage) made.divide = table.divide[row];
  return made;
}

}  // namespace crossover
