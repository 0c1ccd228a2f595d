#include "host/reduction_loops.h"

namespace crossover {

const ReductionTable& portable_reductions() { return kReductions; }

}  // namespace crossover
