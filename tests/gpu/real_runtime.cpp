#include "core/error.h"
#include "runtime_under_test.h"

namespace crossover {

std::shared_ptr<CudaRuntime> runtime_under_test() {
  auto runtime = cudart_runtime();
  if (runtime->device_count() == 0) throw DeviceError("CUDA shows no device");
  return runtime;
}

}  // namespace crossover
