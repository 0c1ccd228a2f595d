// Stochastic rounding into 2-byte elements. Included by kernel_loops.h alone; see kernel_elements.h
// for why everything is internal.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host/kernel_elements.h"

namespace crossover {
namespace {  // NOLINT(google-build-namespaces)

/// The random word of an element under a key: murmur3's finaliser.
inline uint32_t random_word(uint64_t key, int64_t element) {
  uint32_t word = static_cast<uint32_t>(element) * 0x9e3779b1U + static_cast<uint32_t>(key);
  word = (word ^ (word >> 16)) * 0x85ebca6bU;
  word = (word ^ (word >> 13) ^ static_cast<uint32_t>(key >> 32)) * 0xc2b2ae35U;
  return word ^ (word >> 16);
}

/// Up in magnitude with the chance that `word` gives; a value that the type holds stays.
inline uint16_t encode_stochastically(Bfloat16, float value, uint32_t word) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const auto number = static_cast<int32_t>((bits + (word & 0xffff)) >> 16);
  return static_cast<uint16_t>(
      select(is_nan(bits), static_cast<int32_t>((bits >> 16) | 0x0040), number));
}

inline uint16_t encode_stochastically(Float16, float value, uint32_t word) {
  constexpr int32_t kSmallestNormal = 0x38800000;  // 2^-14
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const auto magnitude = static_cast<int32_t>(bits & 0x7fffffff);
  const auto up = static_cast<int32_t>(word & 0x1fff);
  const int32_t rounded = (magnitude - Float16::kRebias + up) >> 13;
  const int32_t normal = rounded < Float16::kExponent ? rounded : Float16::kExponent;
  // In units of 2^-24; what is larger is not used and must only not overflow.
  const int32_t small = select(magnitude < kSmallestNormal, magnitude, 0);
  const float chance = static_cast<float>(word & 0x3ff) * 0x1p-10F;
  const auto subnormal = static_cast<int32_t>(__builtin_bit_cast(float, small) * 0x1p24F + chance);
  const int32_t half = select(magnitude < kSmallestNormal, subnormal, normal);
  const auto number = static_cast<int32_t>(static_cast<uint32_t>(half) | ((bits >> 16) & 0x8000));
  return static_cast<uint16_t>(
      select(is_nan(bits), static_cast<int32_t>(Float16::encode(value)), number));
}

template <class E>
void round_stochastically(const float* in, std::byte* out, int64_t numel, uint64_t key,
                          int64_t first) {
  for (int64_t k = 0; k < numel; ++k) {
    store<E>(out, k, encode_stochastically(E{}, in[k], random_word(key, first + k)));
  }
}

}  // namespace
}  // namespace crossover
