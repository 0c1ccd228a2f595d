// Tensors on the fake GPU, and a rank that exchanges them round by round.
#pragma once

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/cuda_device.h"
#include "fake_cuda.h"
#include "host/kernels.h"

namespace crossover {

using Bytes = std::vector<std::byte>;

/// Tensors of float32 or, rounded, of another type, in memory of the fake GPU.
class GpuTensors {
 public:
  GpuTensors(std::shared_ptr<FakeCuda> gpu, Dtype dtype, std::vector<int64_t> numels, uint32_t seed)
      : gpu_(std::move(gpu)), dtype_(dtype), numels_(std::move(numels)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (const int64_t numel : numels_) {
      std::vector<float> values(static_cast<size_t>(numel));
      for (float& value : values) value = normal(random);
      const size_t bytes = values.size() * dtype_bytes(dtype);
      addresses_.push_back(bytes == 0 ? nullptr : gpu_->allocate_device(bytes));
      pack_elements(values.data(), Dtype::kFloat32, address(addresses_.size() - 1), dtype, numel);
      total_ += numel;
    }
  }
  ~GpuTensors() {
    for (size_t i = 0; i < addresses_.size(); ++i) {
      if (addresses_[i] != nullptr) gpu_->free_device(address(i));
    }
  }
  GpuTensors(const GpuTensors&) = delete;
  GpuTensors& operator=(const GpuTensors&) = delete;

  TensorList list(TensorNotes* notes, StreamHandle stream) const {
    return {dtype_, addresses_, numels_, notes, nullptr, stream};
  }
  std::span<const int64_t> numels() const { return numels_; }
  int64_t total() const { return total_; }
  Slice whole() const { return {0, total_}; }
  std::byte* address(size_t tensor) const { return static_cast<std::byte*>(addresses_[tensor]); }
  float* floats(size_t tensor) const { return static_cast<float*>(addresses_[tensor]); }

  /// All tensors laid end to end.
  Bytes bytes() const {
    Bytes all;
    for (size_t i = 0; i < addresses_.size(); ++i) {
      if (addresses_[i] == nullptr) continue;
      const size_t size = static_cast<size_t>(numels_[i]) * dtype_bytes(dtype_);
      all.insert(all.end(), address(i), address(i) + size);
    }
    return all;
  }

 private:
  std::shared_ptr<FakeCuda> gpu_;
  Dtype dtype_;
  std::vector<int64_t> numels_;
  std::vector<void*> addresses_;
  int64_t total_ = 0;
};

/// What training does to float32 parameters.
inline void train(float* x, int64_t numel, int round) {
  for (int64_t k = 0; k < numel; ++k) x[k] = 0.75F * x[k] + static_cast<float>(round + k % 5);
}

/// One rank with one segment of float32 tensors on its own device over a shared fake GPU.
struct GpuRank {
  GpuRank(std::shared_ptr<FakeCuda> shared, std::vector<int64_t> numels, Dtype wire_type,
          uint32_t seed)
      : gpu(shared),
        wire(wire_type),
        device(shared, 0),
        stream(shared->training_stream()),
        x(shared, Dtype::kFloat32, std::move(numels), seed),
        notes(device.notes(x.numels())),
        inbox(device.allocate(num_bytes())) {}

  size_t num_bytes() const { return static_cast<size_t>(x.total()) * dtype_bytes(wire); }
  TensorList list() const { return x.list(notes.get(), stream); }

  void put_training(int round) {
    gpu->put(stream, "train", [this, round] {
      for (size_t i = 0; i < x.numels().size(); ++i) train(x.floats(i), x.numels()[i], round);
    });
  }
  void post(NonFinitePolicy policy = NonFinitePolicy::kRaise) {
    sink = device.sink(*inbox, num_bytes());
    source =
        device.source({list(), x.whole(), wire, policy, "segment 3 'fc'", device.fence(stream)});
  }
  void mix(double weight) {
    const WeightedMessage message{inbox->data(), x.whole(), wire, weight, inbox.get()};
    device.mix(list(), wire, {&message, 1});
    source.reset();
    sink.reset();
  }

  std::shared_ptr<FakeCuda> gpu;
  Dtype wire;
  CudaDevice device;
  StreamHandle stream;
  GpuTensors x;
  std::unique_ptr<TensorNotes> notes;
  std::unique_ptr<DeviceBuffer> inbox;
  std::unique_ptr<MessageSink> sink;
  std::unique_ptr<MessageSource> source;
};

/// What two ranks of float32 elements must hold after training and mixing for `rounds` rounds.
inline void expected_after(std::vector<GpuRank*> ranks, std::vector<Bytes>& images, Dtype wire,
                           int rounds, double weight) {
  const auto numel = ranks[0]->x.total();
  std::vector<Bytes> messages(2, Bytes(ranks[0]->num_bytes()));
  for (int round = 0; round < rounds; ++round) {
    for (size_t r = 0; r < 2; ++r) {
      auto* at = reinterpret_cast<float*>(images[r].data());
      for (const int64_t size : ranks[r]->x.numels()) {
        train(at, size, round);
        at += size;
      }
      pack_elements(images[r].data(), Dtype::kFloat32, messages[r].data(), wire, numel);
    }
    for (size_t r = 0; r < 2; ++r) {
      const MixInput input{messages[1 - r].data(), wire, weight};
      mix_elements(images[r].data(), Dtype::kFloat32, wire, {&input, 1}, numel);
    }
  }
}

}  // namespace crossover
