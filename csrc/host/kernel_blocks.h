// Blocks of the int8 wire, in code that a compiler turns into vector instructions: every loop runs
// over a whole block, a shorter one is filled up with zeros. Included by kernel_loops.h alone; see
// kernel_elements.h for why everything is internal.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host/kernel_elements.h"

namespace crossover {
namespace {  // NOLINT(google-build-namespaces)

/// The wire's own type in place of an element type.
struct Int8Blocks {
  static constexpr Dtype kDtype = Dtype::kInt8Blocks;
};

constexpr int64_t kInt8BlockBytes = kInt8ScaleBytes + kInt8BlockNumel;

/// Adding it rounds a float below 2^22 to an integer, which its lowest bits then hold.
constexpr float kRounder = 0x1.8p23F;
constexpr int32_t kTooSmall = 0x0d800000;  // 2^-100
constexpr int32_t kTooLarge = 0x7f000000;  // 2^127

struct BlockScale {
  float scale;
  float inverse;
  bool is_finite;
};

inline int32_t magnitude_bits(float value) {
  return static_cast<int32_t>(__builtin_bit_cast(uint32_t, value) & 0x7fffffff);
}

template <class E>
float as_float(typename E::Bits bits) {
  return static_cast<float>(E::template decode<typename E::Arithmetic>(bits));
}

/// `numel` elements as floats, then zeros.
template <class E>
void load_block(float* __restrict values, const std::byte* __restrict x, int64_t numel) {
  if (numel == kInt8BlockNumel) {
    for (int64_t k = 0; k < kInt8BlockNumel; ++k) values[k] = as_float<E>(load<E>(x, k));
    return;
  }
  for (int64_t k = 0; k < numel; ++k) values[k] = as_float<E>(load<E>(x, k));
  for (int64_t k = numel; k < kInt8BlockNumel; ++k) values[k] = 0.0F;
}

inline BlockScale scale_of(const float* values) {
  int32_t largest = 0;
  for (int64_t k = 0; k < kInt8BlockNumel; ++k) {
    const int32_t bits = magnitude_bits(values[k]);
    largest = bits > largest ? bits : largest;
  }
  if (largest >= kTooLarge) return {__builtin_nanf(""), 0.0F, false};
  if (largest < kTooSmall) return {0.0F, 0.0F, true};
  const float exact = __builtin_bit_cast(float, largest) / 127.0F;
  const uint32_t rounded_up = (__builtin_bit_cast(uint32_t, exact) + 0xff) & ~uint32_t{0xff};
  const float scale = __builtin_bit_cast(float, rounded_up);
  return {scale, 1.0F / scale, true};
}

/// Q of a block: `values` may be `quantized`.
inline void quantize_block(float* quantized, const float* values) {
  const BlockScale scale = scale_of(values);
  for (int64_t k = 0; k < kInt8BlockNumel; ++k) {
    quantized[k] = (values[k] * scale.inverse + kRounder - kRounder) * scale.scale;
  }
}

/// What a block that was sent stands for; what is behind its end is not read.
inline void decode_block(float* __restrict values, const std::byte* __restrict block,
                         int64_t numel) {
  const float scale = Float32::decode<float>(load<Float32>(block, 0));
  const std::byte* bytes = block + kInt8ScaleBytes;
  if (numel == kInt8BlockNumel) {
    for (int64_t k = 0; k < kInt8BlockNumel; ++k) {
      values[k] = static_cast<float>(static_cast<int8_t>(bytes[k])) * scale;
    }
    return;
  }
  for (int64_t k = 0; k < numel; ++k) {
    values[k] = static_cast<float>(static_cast<int8_t>(bytes[k])) * scale;
  }
}

/// Writes scale and bytes of `numel` elements; how many of them no block can hold is returned.
inline int64_t encode_block(std::byte* __restrict block, const float* __restrict values,
                            int64_t numel) {
  const BlockScale scale = scale_of(values);
  store<Float32>(block, 0, __builtin_bit_cast(uint32_t, scale.scale));
  alignas(64) std::byte bytes[kInt8BlockNumel];
  for (int64_t k = 0; k < kInt8BlockNumel; ++k) {
    const float rounded = values[k] * scale.inverse + kRounder;
    bytes[k] = static_cast<std::byte>(__builtin_bit_cast(uint32_t, rounded) & 0xff);
  }
  if (!scale.is_finite) __builtin_memset(bytes, 0, sizeof(bytes));
  __builtin_memcpy(block + kInt8ScaleBytes, bytes, static_cast<size_t>(numel));
  int64_t count = 0;
  if (scale.is_finite) return count;
  for (int64_t k = 0; k < numel; ++k) count += magnitude_bits(values[k]) >= kTooLarge ? 1 : 0;
  return count;
}

inline int64_t part_of_block(int64_t begin, int64_t numel) {
  return numel - begin < kInt8BlockNumel ? numel - begin : kInt8BlockNumel;
}

inline const std::byte* block_at(const std::byte* message, int64_t element) {
  return message + element / kInt8BlockNumel * kInt8BlockBytes;
}

template <class From>
int64_t pack_blocks(const std::byte* x, std::byte* out, int64_t numel) {
  alignas(64) float values[kInt8BlockNumel];
  int64_t count = 0;
  for (int64_t begin = 0; begin < numel; begin += kInt8BlockNumel) {
    const int64_t n = part_of_block(begin, numel);
    load_block<From>(values, x + begin * static_cast<int64_t>(sizeof(typename From::Bits)), n);
    count += encode_block(out, values, n);
    out += kInt8BlockBytes;
  }
  return count;
}

template <class To>
int64_t unpack_blocks(const std::byte* message, std::byte* out, int64_t numel) {
  alignas(64) float values[kInt8BlockNumel];
  int64_t count = 0;
  for (int64_t begin = 0; begin < numel; begin += kInt8BlockNumel) {
    const int64_t n = part_of_block(begin, numel);
    decode_block(values, block_at(message, begin), n);
    for (int64_t k = 0; k < n; ++k) {
      const auto bits = To::encode(values[k]);
      count += (bits & To::kExponent) == To::kExponent ? 1 : 0;
      store<To>(out, begin + k, bits);
    }
  }
  return count;
}

}  // namespace
}  // namespace crossover
