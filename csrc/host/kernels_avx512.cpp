#include "host/kernel_loops.h"

namespace crossover {

const KernelTable& avx512_kernels() { return kTable; }

}  // namespace crossover
