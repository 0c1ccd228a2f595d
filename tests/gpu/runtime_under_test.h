// The CUDA runtime that a test runs on: the real one on a GPU, or the fake, which keeps the tests
// themselves right where there is none.
#pragma once

#include <memory>

#include "cuda/runtime.h"

namespace crossover {

/// Throws DeviceError, which says why, if there is no GPU.
std::shared_ptr<CudaRuntime> runtime_under_test();

}  // namespace crossover
