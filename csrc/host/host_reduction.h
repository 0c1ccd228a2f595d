// Reductions of elements in host memory, with SIMD chosen at run time.
#pragma once

#include "core/reduction.h"
#include "host/kernels.h"

namespace crossover {

/// The loops for a type and an operation. Every level gives the same bits, up to which NaN a NaN
/// is; a NaN on either side stays a NaN, also under kMin and kMax; integers wrap. float16 and
/// bfloat16 are computed in float32 and rounded after every element combined. kAverage sums;
/// divide() then makes it the average. With ReduceOp::kNone there is element_bytes alone (1 for
/// kOther).
///
/// Throws InvalidArgument if the operation has no meaning for the type: bits of floating-point
/// numbers, averages of integers, anything of kBool, complex numbers and kOther.
Reduction host_reduction(ElementType type, ReduceOp op, SimdLevel level = simd_level());

}  // namespace crossover
