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
