// Element types on the device: exact decoding, rounding to nearest even.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace crossover {

/// The float next to a double, with an odd last bit if it is inexact: rounding it once more, to at
/// most 22 bits, equals rounding the double once.
__device__ inline float round_to_odd(double value) {
  const float nearest = __double2float_rn(value);
  const double back = nearest;
  if (back == value || value != value) return nearest;
  const unsigned int away = fabs(back) > fabs(value) ? 1U : 0U;
  return __uint_as_float((__float_as_uint(nearest) - away) | 1U);
}

struct Float32 {
  using Storage = float;
  using Arithmetic = float;
  template <class A>
  __device__ static A decode(float value) {
    return static_cast<A>(value);
  }
  __device__ static float encode(float value) { return value; }
  __device__ static float encode(double value) { return __double2float_rn(value); }
  __device__ static bool is_finite(float value) { return isfinite(value); }
};

struct Float64 {
  using Storage = double;
  using Arithmetic = double;
  template <class A>
  __device__ static A decode(double value) {
    static_assert(std::is_same_v<A, double>, "float64 is never narrowed before arithmetic");
    return value;
  }
  __device__ static double encode(double value) { return value; }
  __device__ static bool is_finite(double value) { return isfinite(value); }
};

struct Float16 {
  using Storage = __half;
  using Arithmetic = float;
  template <class A>
  __device__ static A decode(__half value) {
    return static_cast<A>(__half2float(value));
  }
  __device__ static __half encode(float value) { return __float2half_rn(value); }
  __device__ static __half encode(double value) { return __float2half_rn(round_to_odd(value)); }
  __device__ static bool is_finite(__half value) {
    return (__half_as_ushort(value) & 0x7c00U) != 0x7c00U;
  }
};

struct Bfloat16 {
  using Storage = __nv_bfloat16;
  using Arithmetic = float;
  template <class A>
  __device__ static A decode(__nv_bfloat16 value) {
    return static_cast<A>(__bfloat162float(value));
  }
  __device__ static __nv_bfloat16 encode(float value) { return __float2bfloat16_rn(value); }
  __device__ static __nv_bfloat16 encode(double value) {
    return __float2bfloat16_rn(round_to_odd(value));
  }
  __device__ static bool is_finite(__nv_bfloat16 value) {
    return (__bfloat16_as_ushort(value) & 0x7f80U) != 0x7f80U;
  }
};

/// The random word of an element under a key: murmur3's finaliser, as the host's kernels have it.
__device__ inline unsigned int random_word(uint64_t key, int64_t element) {
  unsigned int word =
      static_cast<unsigned int>(element) * 0x9e3779b1U + static_cast<unsigned int>(key);
  word = (word ^ (word >> 16)) * 0x85ebca6bU;
  word = (word ^ (word >> 13) ^ static_cast<unsigned int>(key >> 32)) * 0xc2b2ae35U;
  return word ^ (word >> 16);
}

/// Up in magnitude with the chance that `word` gives; a value that the type holds stays.
__device__ inline __nv_bfloat16 encode_stochastically(Bfloat16, float value, unsigned int word) {
  if (value != value) return Bfloat16::encode(value);
  const unsigned int bits = __float_as_uint(value) + (word & 0xffffU);
  return __ushort_as_bfloat16(static_cast<unsigned short>(bits >> 16));
}

__device__ inline __half encode_stochastically(Float16, float value, unsigned int word) {
  if (value != value) return Float16::encode(value);
  constexpr unsigned int kRebias = (127U - 15U) << 23;
  const unsigned int magnitude = __float_as_uint(value) & 0x7fffffffU;
  const unsigned int sign = (__float_as_uint(value) >> 16) & 0x8000U;
  if (magnitude < 0x38800000U) {  // 2^-14
    const float chance = __fmul_rn(static_cast<float>(word & 0x3ffU), 0x1p-10F);
    const float units = __fadd_rn(__fmul_rn(__uint_as_float(magnitude), 0x1p24F), chance);
    return __ushort_as_half(static_cast<unsigned short>(__float2uint_rz(units) | sign));
  }
  const unsigned int rounded = (magnitude - kRebias + (word & 0x1fffU)) >> 13;
  return __ushort_as_half(static_cast<unsigned short>(min(rounded, 0x7c00U) | sign));
}

/// A sum as it is stored in element `element` of the segment.
template <class E, class A>
__device__ typename E::Storage stored(A sum, uint64_t rounding_key, int64_t element) {
  if constexpr (sizeof(typename E::Storage) == 2) {
    if (rounding_key != 0) {
      return encode_stochastically(E{}, sum, random_word(rounding_key, element));
    }
  }
  return E::encode(sum);
}

__device__ inline float difference(float a, float b) { return __fsub_rn(a, b); }
__device__ inline double difference(double a, double b) { return __dsub_rn(a, b); }
__device__ inline float total(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double total(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

/// The sum with one more message of `weight`; a weight of 1 takes the message's bits.
template <class A>
__device__ A with_message(A sum, A weight, A other, A own) {
  if (weight == A{1}) return total(difference(sum, own), other);
  return fused(weight, difference(other, own), sum);
}

template <size_t kBytes>
struct Word;
template <>
struct Word<4> {
  using Type = unsigned int;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

/// kNumel elements that move in one access of up to 16 bytes.
template <class E, int kNumel>
struct Vector {
  using Storage = typename E::Storage;
  static constexpr size_t kBytes = sizeof(Storage) * kNumel;
  using Memory = typename Word<kBytes>::Type;

  Storage elements[kNumel];

  __device__ static bool is_aligned(const Storage* address) {
    return reinterpret_cast<uintptr_t>(address) % kBytes == 0;
  }
  // Past the first-level cache: each element is used once. The intrinsics keep an access whole.
  __device__ void load(const Storage* from) {
    const Memory word = __ldcg(reinterpret_cast<const Memory*>(from));
    memcpy(elements, &word, kBytes);
  }
  __device__ void store(Storage* to) const {
    Memory word;
    memcpy(&word, elements, kBytes);
    __stcg(reinterpret_cast<Memory*>(to), word);
  }
};

/// Elements of a vector of which the wider type fills 16 bytes.
template <class A, class B>
constexpr int kVectorNumel =
    16 / (sizeof(typename A::Storage) > sizeof(typename B::Storage) ? sizeof(typename A::Storage)
                                                                    : sizeof(typename B::Storage));

}  // namespace crossover
