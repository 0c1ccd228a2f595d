#include "host/kernel_loops.h"

namespace crossover {

const KernelTable& avx2_kernels() { return kTable; }

}  // namespace crossover
