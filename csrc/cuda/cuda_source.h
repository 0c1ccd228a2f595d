// Messages of a GPU's tensors, for a transport that moves device memory and for one that does not.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>

#include "core/message.h"
#include "cuda/packer.h"
#include "cuda/staging.h"

namespace crossover {

/// What the sources, sinks and mixes of a device share; made while the device is current.
struct CudaParts {
  CudaParts(std::shared_ptr<CudaRuntime> owner, int device)
      : runtime(owner), ordinal(device), staging(owner), packer(owner), fences(owner) {}

  const std::shared_ptr<CudaRuntime> runtime;
  const int ordinal;
  Staging staging;
  Packer packer;
  Pool<CudaEvent> fences;
};

/// Packs the whole message at once, when it is made.
class CudaSource final : public MessageSource {
 public:
  CudaSource(CudaParts& parts, const PackSpec& spec);

  size_t num_bytes() const override { return num_bytes_; }
  size_t produce(std::span<std::byte> out) override;
  const std::byte* acquire(StreamHandle stream) override;
  void release(StreamHandle stream) override;

 private:
  CudaParts& parts_;
  const size_t element_bytes_;
  const size_t num_bytes_;
  std::shared_ptr<CudaBuffer> buffer_;
  std::shared_ptr<PackResult> result_;
  std::optional<OutboundCopy> copy_;  // from the first produce()
  bool checked_ = false;
};

class CudaSink final : public MessageSink {
 public:
  CudaSink(CudaParts& parts, CudaBuffer& buffer, size_t num_bytes)
      : parts_(parts),
        buffer_(buffer),
        num_bytes_(num_bytes),
        copy_(parts.staging, buffer, num_bytes) {}

  size_t num_bytes() const override { return num_bytes_; }
  size_t consume(std::span<const std::byte> in) override;
  std::byte* acquire(StreamHandle stream) override;
  void release(StreamHandle stream) override;

 private:
  CudaParts& parts_;
  CudaBuffer& buffer_;
  const size_t num_bytes_;
  InboundCopy copy_;
};

}  // namespace crossover
