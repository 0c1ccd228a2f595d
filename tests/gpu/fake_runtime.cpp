#include "fake_cuda.h"
#include "runtime_under_test.h"

namespace crossover {

std::shared_ptr<CudaRuntime> runtime_under_test() {
  auto runtime = std::make_shared<FakeCuda>();
  runtime->run_host_functions_at_once();
  return runtime;
}

}  // namespace crossover
