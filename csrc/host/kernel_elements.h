// Element types of the kernels, in code that a compiler turns into vector instructions: no
// branches, integer selects, unaligned loads. Included by kernel_loops.h and reduction_loops.h
// alone.
//
// This header is compiled once per instruction set. Everything in it has internal linkage and calls
// only builtins, never an inline function of the standard library: else the linker could keep
// the AVX-512 copy of a function for everyone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace crossover {
namespace {  // NOLINT(google-build-namespaces): internal linkage is the point

/// The float between a double and zero or the double itself, with an odd last bit if it is inexact:
/// rounding it once more, to at most 22 bits, equals rounding the double once.
inline float round_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  const double back = nearest;
  const auto away = static_cast<uint32_t>(__builtin_fabs(back) > __builtin_fabs(value));
  const auto inexact = static_cast<uint32_t>(back != value);
  return __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, nearest) - away) | inexact);
}
inline float narrow(double value) { return round_to_odd(value); }
inline float narrow(float value) { return value; }

/// `a` if `condition`, else `b`, both computed: a conditional would be turned back into a branch
/// that skips the floating-point work in `a`, and a loop with branches is not vectorised.
inline int32_t select(bool condition, int32_t a, int32_t b) {
  const int32_t mask = -static_cast<int32_t>(condition);
  return (a & mask) | (b & ~mask);
}

inline bool is_nan(uint32_t bits) { return static_cast<int32_t>(bits & 0x7fffffff) > 0x7f800000; }

/// What every element type has: its Dtype, `Bits` as stored, `Arithmetic` the type it is computed
/// in, `kExponent` the mask of the exponent, `kUlpOfExponent` its lowest bit; decode() is exact
/// when A is wide enough, encode() rounds to nearest even and keeps a NaN a NaN; encode_number() is
/// the shorter form for values that are none.
struct Float32 {
  static constexpr Dtype kDtype = Dtype::kFloat32;
  using Bits = uint32_t;
  using Arithmetic = float;
  static constexpr Bits kExponent = 0x7f800000;
  static constexpr Bits kUlpOfExponent = 0x00800000;
  template <class A>
  static A decode(Bits bits) {
    return static_cast<A>(__builtin_bit_cast(float, bits));
  }
  template <class A>
  static Bits encode(A value) {
    return __builtin_bit_cast(Bits, static_cast<float>(value));
  }
  template <class A>
  static Bits encode_number(A value) {
    return encode(value);
  }
};

struct Float64 {
  static constexpr Dtype kDtype = Dtype::kFloat64;
  using Bits = uint64_t;
  using Arithmetic = double;
  static constexpr Bits kExponent = 0x7ff0000000000000;
  static constexpr Bits kUlpOfExponent = 0x0010000000000000;
  template <class A>
  static A decode(Bits bits) {
    return static_cast<A>(__builtin_bit_cast(double, bits));
  }
  template <class A>
  static Bits encode(A value) {
    return __builtin_bit_cast(Bits, static_cast<double>(value));
  }
  template <class A>
  static Bits encode_number(A value) {
    return encode(value);
  }
};

struct Bfloat16 {
  static constexpr Dtype kDtype = Dtype::kBfloat16;
  using Bits = uint16_t;
  using Arithmetic = float;
  static constexpr Bits kExponent = 0x7f80;
  static constexpr Bits kUlpOfExponent = 0x0080;
  template <class A>
  static A decode(Bits bits) {
    return static_cast<A>(__builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16));
  }
  template <class A>
  static Bits encode(A value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, narrow(value));
    const auto quiet_nan = static_cast<int32_t>((bits >> 16) | 0x0040);
    return static_cast<Bits>(select(is_nan(bits), quiet_nan, encode_number(value)));
  }
  template <class A>
  static Bits encode_number(A value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, narrow(value));
    return static_cast<Bits>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
};

struct Float16 {
  static constexpr Dtype kDtype = Dtype::kFloat16;
  using Bits = uint16_t;
  using Arithmetic = float;
  static constexpr Bits kExponent = 0x7c00;
  static constexpr Bits kUlpOfExponent = 0x0400;
  static constexpr int32_t kRebias = (127 - 15) << 23;

  template <class A>
  static A decode(Bits bits) {
    const int32_t magnitude = bits & 0x7fff;
    const int32_t widened = magnitude << 13;
    const int32_t normal = widened + kRebias;
    const int32_t subnormal = __builtin_bit_cast(int32_t, static_cast<float>(magnitude) * 0x1p-24F);
    const int32_t quiet = magnitude > kExponent ? 0x00400000 : 0;
    const int32_t special = (widened + 2 * kRebias) | quiet;
    int32_t single = select(magnitude < kUlpOfExponent, subnormal, normal);
    single = select(magnitude >= kExponent, special, single);
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    return static_cast<A>(__builtin_bit_cast(float, static_cast<uint32_t>(single) | sign));
  }
  template <class A>
  static Bits encode(A value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, narrow(value));
    const uint32_t quiet_nan = ((bits >> 16) & 0x8000) | ((bits >> 13) & 0x3ff) | 0x7e00;
    return static_cast<Bits>(
        select(is_nan(bits), static_cast<int32_t>(quiet_nan), encode_number(value)));
  }
  template <class A>
  static Bits encode_number(A value) {
    constexpr int32_t kSmallestNormal = 0x38800000;  // 2^-14
    constexpr int32_t kHalf = 0x3f000000;            // 0.5: its last bit is worth 2^-24
    const uint32_t bits = __builtin_bit_cast(uint32_t, narrow(value));
    const auto magnitude = static_cast<int32_t>(bits & 0x7fffffff);
    const int32_t rounded = (magnitude - kRebias + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const int32_t normal = rounded < kExponent ? rounded : kExponent;
    const int32_t subnormal =
        __builtin_bit_cast(int32_t, __builtin_bit_cast(float, magnitude) + 0.5F) - kHalf;
    const int32_t half = select(magnitude < kSmallestNormal, subnormal, normal);
    return static_cast<Bits>(static_cast<uint32_t>(half) | ((bits >> 16) & 0x8000));
  }
};

template <class E>
typename E::Bits load(const std::byte* elements, int64_t index) {
  typename E::Bits bits;
  __builtin_memcpy(&bits, elements + index * static_cast<int64_t>(sizeof(bits)), sizeof(bits));
  return bits;
}

template <class E>
void store(std::byte* elements, int64_t index, typename E::Bits bits) {
  __builtin_memcpy(elements + index * static_cast<int64_t>(sizeof(bits)), &bits, sizeof(bits));
}

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

}  // namespace
}  // namespace crossover
