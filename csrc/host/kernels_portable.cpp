#include "host/kernel_loops.h"

namespace crossover {

const KernelTable& portable_kernels() { return kTable; }

}  // namespace crossover
