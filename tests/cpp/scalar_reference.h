// The obvious versions of cast, pack and mix, in exact arithmetic: what the kernels must equal.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "core/dtype.h"

namespace crossover::reference {

using Bytes = std::vector<std::byte>;

/// Bits of precision with the hidden one, exponent of the smallest normal, largest finite value.
struct Format {
  int precision;
  int smallest_exponent;
  double largest;
};

inline Format format(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return {53, -1022, std::numeric_limits<double>::max()};
    case Dtype::kFloat32:
      return {24, -126, std::numeric_limits<float>::max()};
    case Dtype::kFloat16:
      return {11, -14, 65504.0};
    case Dtype::kBfloat16:
      return {8, -126, 0x1.FEp127};
    case Dtype::kInt8Blocks:
      break;
  }
  return {};
}

/// `value` rounded to nearest even in `dtype`.
inline double round_to(Dtype dtype, double value) {
  if (value == 0.0 || !std::isfinite(value) || dtype == Dtype::kFloat64) return value;
  const Format f = format(dtype);
  const int unit = std::max(std::ilogb(value), f.smallest_exponent) - (f.precision - 1);
  const double rounded = std::scalbn(std::nearbyint(std::scalbn(value, -unit)), unit);
  if (std::abs(rounded) <= f.largest) return rounded;
  return std::copysign(std::numeric_limits<double>::infinity(), value);
}

/// The bits of a float16 value, which `value` is exactly.
inline uint16_t half_bits(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  const double magnitude = std::abs(value);
  if (magnitude < 0x1p-14) return sign | static_cast<uint16_t>(magnitude * 0x1p24);
  const int exponent = std::ilogb(magnitude);
  const auto fraction = static_cast<int>((std::scalbn(magnitude, -exponent) - 1.0) * 1024);
  return static_cast<uint16_t>(sign | ((exponent + 15) << 10) | fraction);
}

inline double half_value(uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  if (exponent == 31) {
    return sign * (fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                                 : std::numeric_limits<double>::infinity());
  }
  if (exponent == 0) return sign * std::scalbn(fraction, -24);
  return sign * std::scalbn(1024 + fraction, exponent - 25);
}

template <class T>
void put(T value, std::byte* to) {
  std::memcpy(to, &value, sizeof(value));
}

template <class T>
T get(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

/// Writes `value` as one element of `dtype`, rounded.
inline void encode(Dtype dtype, double value, std::byte* to) {
  const double rounded = round_to(dtype, value);
  switch (dtype) {
    case Dtype::kFloat64:
      return put(rounded, to);
    case Dtype::kFloat32:
      return put(static_cast<float>(rounded), to);
    case Dtype::kFloat16:
      return put(half_bits(rounded), to);
    case Dtype::kBfloat16: {
      const auto single = static_cast<float>(rounded);
      uint32_t bits = 0;
      std::memcpy(&bits, &single, sizeof(bits));
      return put(static_cast<uint16_t>(bits >> 16), to);
    }
    case Dtype::kInt8Blocks:
      break;
  }
}

inline double decode(Dtype dtype, const std::byte* from) {
  switch (dtype) {
    case Dtype::kFloat64:
      return get<double>(from);
    case Dtype::kFloat32:
      return get<float>(from);
    case Dtype::kFloat16:
      return half_value(get<uint16_t>(from));
    case Dtype::kBfloat16: {
      const uint32_t bits = static_cast<uint32_t>(get<uint16_t>(from)) << 16;
      float value = 0;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
    case Dtype::kInt8Blocks:
      break;
  }
  return 0.0;
}

inline double element(Dtype dtype, const std::byte* elements, int64_t index) {
  return decode(dtype, elements + static_cast<size_t>(index) * dtype_bytes(dtype));
}

/// The scale of a block of kInt8Blocks.
inline float int8_scale(std::span<const double> block) {
  float largest = 0;
  for (const double value : block) {
    const float magnitude = std::abs(static_cast<float>(value));
    if (!(magnitude < 0x1p127F)) return std::numeric_limits<float>::quiet_NaN();
    largest = std::max(largest, magnitude);
  }
  if (largest < 0x1p-100F) return 0.0F;
  int exponent = 0;
  const float fraction = std::frexp(largest / 127.0F, &exponent);
  return std::ldexp(std::ceil(std::ldexp(fraction, 16)), exponent - 16);
}

inline std::span<const double> int8_block(std::span<const double> values, size_t begin) {
  constexpr size_t kNumel = kInt8BlockNumel;
  return values.subspan(begin, std::min(kNumel, values.size() - begin));
}

inline Bytes encode_blocks(std::span<const double> values) {
  Bytes bytes;
  for (size_t begin = 0; begin < values.size(); begin += kInt8BlockNumel) {
    const std::span<const double> block = int8_block(values, begin);
    const float scale = int8_scale(block);
    const float inverse = scale > 0 ? 1.0F / scale : 0.0F;
    bytes.resize(bytes.size() + sizeof(scale));
    put(scale, &bytes[bytes.size() - sizeof(scale)]);
    for (const double value : block) {
      const float steps = std::nearbyint(static_cast<float>(value) * inverse);
      bytes.push_back(std::isnan(scale) ? std::byte{0}
                                        : static_cast<std::byte>(static_cast<int8_t>(steps)));
    }
  }
  return bytes;
}

inline std::vector<double> decode_blocks(std::span<const std::byte> bytes) {
  std::vector<double> values;
  while (!bytes.empty()) {
    const auto scale = get<float>(bytes.data());
    bytes = bytes.subspan(sizeof(scale));
    const size_t numel = std::min<size_t>(kInt8BlockNumel, bytes.size());
    for (const std::byte steps : bytes.first(numel)) {
      values.push_back(static_cast<double>(static_cast<int8_t>(steps)) * scale);
    }
    bytes = bytes.subspan(numel);
  }
  return values;
}

inline Bytes encode_all(Dtype dtype, std::span<const double> values) {
  if (dtype == Dtype::kInt8Blocks) return encode_blocks(values);
  Bytes bytes(values.size() * dtype_bytes(dtype));
  for (size_t k = 0; k < values.size(); ++k) {
    encode(dtype, values[k], bytes.data() + k * dtype_bytes(dtype));
  }
  return bytes;
}

inline std::vector<double> decode_all(Dtype dtype, std::span<const std::byte> bytes) {
  if (dtype == Dtype::kInt8Blocks) return decode_blocks(bytes);
  std::vector<double> values(bytes.size() / dtype_bytes(dtype));
  for (size_t k = 0; k < values.size(); ++k) {
    values[k] = decode(dtype, bytes.data() + k * dtype_bytes(dtype));
  }
  return values;
}

struct WeightedValue {
  double value;
  double weight;
};

/// Q(x), element by element or block by block.
inline std::vector<double> quantized(Dtype wire, std::span<const double> x) {
  return decode_all(wire, encode_all(wire, x));
}

/// One element mixed: x + sum of weight * (m - q), as device.h defines it, in arithmetic A.
template <class A>
double mix_element(double x, double sent, std::span<const WeightedValue> messages) {
  const A q = static_cast<A>(sent);
  A sum = static_cast<A>(x);
  for (const WeightedValue& m : messages) {
    const A value = static_cast<A>(m.value);
    const A weight = static_cast<A>(m.weight);
    sum = weight == 1 ? (sum - q) + value : std::fma(weight, value - q, sum);
  }
  return sum;
}

/// `sent` is Q(x).
inline double mix_element(Dtype tensor, double x, double sent,
                          std::span<const WeightedValue> messages) {
  return tensor == Dtype::kFloat64 ? mix_element<double>(x, sent, messages)
                                   : mix_element<float>(x, sent, messages);
}

inline double mix_element(Dtype tensor, double x, Dtype own,
                          std::span<const WeightedValue> messages) {
  return mix_element(tensor, x, round_to(own, x), messages);
}

}  // namespace crossover::reference
