#include "host/reduction_loops.h"

namespace crossover {

const ReductionTable& avx2_reductions() { return kReductions; }

}  // namespace crossover
