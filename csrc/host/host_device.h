// Tensors in host memory: fused pack and mix with SIMD chosen at run time.
#pragma once

#include <memory>

#include "core/device.h"

namespace crossover {

/// Sources pack straight into the transport's window, sinks copy straight into the inbox.
std::shared_ptr<Device> host_device();

}  // namespace crossover
