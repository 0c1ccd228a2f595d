// Elements on the GPU and on the host, and when they count as equal.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/resources.h"
#include "host/kernels.h"
#include "runtime_under_test.h"

namespace crossover::testing {

using Bytes = std::vector<std::byte>;

inline constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16,
                                    Dtype::kBfloat16};

/// A test with a GPU, or skipped with the reason.
class OnGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      runtime = runtime_under_test();
      stream = std::make_unique<CudaStream>(*runtime);
    } catch (const DeviceError& error) {
      GTEST_SKIP() << error.what();
    }
  }

  std::shared_ptr<CudaRuntime> runtime;
  std::unique_ptr<CudaStream> stream;
};

/// Bytes in device memory, `shift_bytes` after an aligned address.
class GpuBytes {
 public:
  GpuBytes(CudaRuntime& runtime, StreamHandle stream, const Bytes& content, size_t shift_bytes)
      : runtime_(runtime),
        stream_(stream),
        size_(content.size()),
        shift_(shift_bytes),
        memory_(runtime, CudaMemoryKind::kDevice, size_ + shift_ + 1) {
    set(content);
  }

  std::byte* data() const { return memory_.data() + shift_; }
  void set(const Bytes& content) {
    runtime_.copy_to_device(data(), content.data(), size_, stream_);
    runtime_.wait_for_stream(stream_);
  }
  Bytes get() const {
    Bytes content(size_);
    runtime_.copy_to_host(content.data(), data(), size_, stream_);
    runtime_.wait_for_stream(stream_);
    return content;
  }

 private:
  CudaRuntime& runtime_;
  StreamHandle stream_;
  size_t size_;
  size_t shift_;
  CudaMemory memory_;
};

enum class Values { kNormal, kAnyBits /* NaN, infinities and subnormals among them */ };

inline Bytes random_elements(Dtype dtype, int64_t numel, Values values, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes elements(packed_bytes(dtype, numel));
  if (values == Values::kAnyBits) {
    for (std::byte& byte : elements) byte = static_cast<std::byte>(random());
    return elements;
  }
  std::normal_distribution<double> normal;
  std::vector<double> exact(static_cast<size_t>(numel));
  for (double& value : exact) value = normal(random);
  pack_elements(exact.data(), Dtype::kFloat64, elements.data(), dtype, numel);
  return elements;
}

inline bool is_nan(Dtype dtype, const std::byte* element) {
  double value = 0.0;
  pack_elements(element, dtype, reinterpret_cast<std::byte*>(&value), Dtype::kFloat64, 1);
  return std::isnan(value);
}

/// Bit for bit, or a NaN where a NaN is wanted.
inline void expect_same(Dtype dtype, const Bytes& got, const Bytes& wanted,
                        const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  const size_t size = dtype_bytes(dtype);
  for (size_t at = 0; at < got.size(); at += size) {
    if (std::memcmp(&got[at], &wanted[at], size) == 0) continue;
    ASSERT_TRUE(is_nan(dtype, &got[at]) && is_nan(dtype, &wanted[at]))
        << what << ": element " << at / size << " of " << got.size() / size;
  }
}

}  // namespace crossover::testing
