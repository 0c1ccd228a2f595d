// A device whose memory is the host's, but resident: for transports that move it by themselves.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/device.h"
#include "host/host_device.h"
#include "nccl_world.h"

namespace crossover::testing {

/// Packs and mixes as the host does. A mix waits, on the calling thread, for the streams that fill
/// its messages, where a real device would let a stream wait.
class ResidentDevice final : public Device {
 public:
  MemoryKind memory() const override { return MemoryKind::kCuda; }
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override { return host_->allocate(bytes); }
  std::unique_ptr<MessageSource> source(const PackSpec& spec) override {
    return std::make_unique<Source>(*this, host_->source(spec));
  }
  std::unique_ptr<MessageSink> sink(DeviceBuffer& buffer, size_t num_bytes) override {
    return std::make_unique<Sink>(*this, buffer, num_bytes);
  }
  void mix(const TensorList& tensors, Dtype own,
           std::span<const WeightedMessage> messages) override {
    for (const WeightedMessage& message : messages) await(message.data);
    host_->mix(tensors, own, messages);
  }
  void replace(const TensorList& tensors, Dtype own,
               std::span<const WeightedMessage> messages) override {
    for (const WeightedMessage& message : messages) await(message.data);
    host_->replace(tensors, own, messages);
  }
  /// Waits for all that was put on streams.
  void drain() override {
    for (;;) {
      const std::byte* next = nullptr;
      {
        const std::lock_guard lock(mutex_);
        if (filled_by_.empty()) return;
        next = filled_by_.begin()->first;
      }
      await(next);
    }
  }

 private:
  class Source final : public MessageSource {
   public:
    Source(ResidentDevice& device, std::unique_ptr<MessageSource> source)
        : device_(device), source_(std::move(source)) {}
    size_t num_bytes() const override { return source_->num_bytes(); }
    size_t produce(std::span<std::byte> out) override { return source_->produce(out); }
    const std::byte* acquire(StreamHandle) override {
      const std::lock_guard lock(device_.mutex_);
      std::vector<std::byte>& packed = device_.packed_.emplace_back(num_bytes());
      for (size_t at = 0; at < packed.size();) {
        at += source_->produce(std::span<std::byte>(packed).subspan(at));
      }
      return packed.data();
    }

   private:
    ResidentDevice& device_;
    std::unique_ptr<MessageSource> source_;
  };

  class Sink final : public MessageSink {
   public:
    Sink(ResidentDevice& device, DeviceBuffer& buffer, size_t num_bytes)
        : device_(device), buffer_(buffer), sink_(device.host_->sink(buffer, num_bytes)) {}
    size_t num_bytes() const override { return sink_->num_bytes(); }
    size_t consume(std::span<const std::byte> in) override { return sink_->consume(in); }
    std::byte* acquire(StreamHandle) override { return buffer_.data(); }
    void release(StreamHandle stream) override {
      const std::lock_guard lock(device_.mutex_);
      device_.filled_by_[buffer_.data()] = {stream, fake_nccl().enqueued(stream)};
    }

   private:
    ResidentDevice& device_;
    DeviceBuffer& buffer_;
    std::unique_ptr<MessageSink> sink_;
  };

  void await(const std::byte* data) {
    std::pair<StreamHandle, uint64_t> mark;
    {
      const std::lock_guard lock(mutex_);
      const auto found = filled_by_.find(data);
      if (found == filled_by_.end()) return;
      mark = found->second;
    }
    while (fake_nccl().completed(mark.first) < mark.second) std::this_thread::yield();
    const std::lock_guard lock(mutex_);
    filled_by_.erase(data);
  }

  const std::shared_ptr<HostDevice> host_ = host_device();
  std::mutex mutex_;
  std::deque<std::vector<std::byte>> packed_;  // kept: streams read it after the send is told
  std::map<const std::byte*, std::pair<StreamHandle, uint64_t>> filled_by_;
};

}  // namespace crossover::testing
