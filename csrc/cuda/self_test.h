// What the doctor runs on a device: small, with known answers, bounded in time.
#pragma once

#include <memory>

#include "core/device.h"
#include "cuda/nccl_library.h"
#include "cuda/stream_events.h"

namespace crossover {

// Each throws DeviceError, which says what differs from what was expected or did not end in time,
// or whatever the device and NCCL throw.

/// Packs float32 values into bfloat16.
void check_pack(Device& device);

/// Mixes two messages into float32 values.
void check_mix(Device& device);

/// Sends a message to this rank itself, through the whole NCCL transport of a world of one.
void check_self_exchange(const std::shared_ptr<Device>& device,
                         std::shared_ptr<const NcclLibrary> library,
                         std::shared_ptr<StreamEvents> events);

}  // namespace crossover
