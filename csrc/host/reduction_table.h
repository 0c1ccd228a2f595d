// The reductions of one instruction set, as a table. Private to host.
#pragma once

#include "core/reduction.h"

namespace crossover {

inline constexpr size_t kNumReducedTypes = 12;  // those before ElementType::kBool
inline constexpr size_t kNumReduceOps = 9;

/// Null where the operation has no meaning for the type.
struct ReductionTable {
  Reduction::Combine combine[kNumReducedTypes][kNumReduceOps];
  Reduction::Divide divide[kNumReducedTypes];
};

const ReductionTable& portable_reductions();
const ReductionTable& avx2_reductions();  // x86-64 only

}  // namespace crossover
