// One stream for exchanges, as the NCCL transport sees it: a seam that tests put a fake in.
#pragma once

#include <cstdint>
#include <memory>

#include "core/message.h"

namespace crossover {

class CudaRuntime;

/// Calls come from the progress thread, make_current() from any.
class StreamEvents {
 public:
  virtual ~StreamEvents() = default;
  /// Makes the device current on the calling thread, for CUDA and for NCCL.
  virtual void make_current() = 0;
  /// The stream that exchanges run on; no other work is put there.
  virtual StreamHandle stream() const = 0;
  /// Marks all work that the stream has got so far. The mark is valid until done() has said true.
  virtual uint64_t record() = 0;
  /// Whether the marked work is complete; never blocks. Throws DeviceError if the device failed.
  virtual bool done(uint64_t mark) = 0;
};

/// A stream of its own on device `ordinal`.
std::shared_ptr<StreamEvents> cuda_stream_events(std::shared_ptr<CudaRuntime> runtime, int ordinal);

}  // namespace crossover
