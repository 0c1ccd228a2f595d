#include "host/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernel_inputs.h"
#include "scalar_reference.h"

namespace crossover {
namespace {

using reference::Bytes;

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16};
constexpr double kInf = std::numeric_limits<double>::infinity();
const double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kNumels[] = {0, 1, 3, 7, 8, 9, 31, 32, 33, 511, 512, 513, 1023, 1025};

/// Equal bits, or a NaN in both.
testing::AssertionResult same_elements(Dtype dtype, const Bytes& got, const Bytes& wanted) {
  if (got.size() != wanted.size()) return testing::AssertionFailure() << "sizes differ";
  const size_t step = dtype_bytes(dtype);
  for (size_t at = 0; at < got.size(); at += step) {
    if (std::memcmp(&got[at], &wanted[at], step) == 0) continue;
    const double a = reference::decode(dtype, &got[at]);
    const double b = reference::decode(dtype, &wanted[at]);
    if (std::isnan(a) && std::isnan(b)) continue;
    return testing::AssertionFailure()
           << "element " << at / step << ": got " << a << ", wanted " << b;
  }
  return testing::AssertionSuccess();
}

class EveryLevel : public testing::TestWithParam<SimdLevel> {
 protected:
  void SetUp() override {
    if (GetParam() > simd_level()) GTEST_SKIP() << "this CPU lacks the instruction set";
  }

  Bytes pack(Dtype from, Dtype to, const Bytes& x, int64_t* non_finite = nullptr) {
    Misaligned in(x);
    const auto numel = static_cast<int64_t>(x.size() / dtype_bytes(from));
    Misaligned out(Bytes(static_cast<size_t>(numel) * dtype_bytes(to)));
    const int64_t count = pack_elements(in.data(), from, out.data(), to, numel, GetParam());
    if (non_finite != nullptr) *non_finite = count;
    return out.bytes();
  }
};

std::string level_name(const testing::TestParamInfo<SimdLevel>& info) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512"};
  return kNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Kernels, EveryLevel,
                         testing::Values(SimdLevel::kPortable, SimdLevel::kAvx2,
                                         SimdLevel::kAvx512),
                         level_name);

// --- pack

TEST_P(EveryLevel, PackEqualsTheScalarCastForEveryPairOfDtypes) {
  for (const Dtype from : kDtypes) {
    for (const Dtype to : kDtypes) {
      for (const int64_t numel : kNumels) {
        const Bytes x = reference::encode_all(from, varied_values(numel, 1));
        const Bytes wanted = reference::encode_all(to, reference::decode_all(from, x));
        EXPECT_TRUE(same_elements(to, pack(from, to, x), wanted))
            << dtype_name(from) << " to " << dtype_name(to) << ", " << numel << " elements";
      }
    }
  }
}

TEST_P(EveryLevel, PackOfALargeTensorEqualsPackOfItsParts) {
  const int64_t numel = (int64_t{9} << 20) / 2 + 77;
  std::vector<float> x(static_cast<size_t>(numel));
  for (size_t k = 0; k < x.size(); ++k) x[k] = static_cast<float>(k) * 1.37F - 3e6F;
  x[x.size() - 1] = std::numeric_limits<float>::infinity();
  for (const Dtype to : {Dtype::kFloat32, Dtype::kBfloat16}) {
    const size_t step = dtype_bytes(to);
    Bytes whole(x.size() * step);
    Bytes parts(x.size() * step);
    EXPECT_EQ(pack_elements(x.data(), Dtype::kFloat32, whole.data(), to, numel, GetParam()), 1);
    for (int64_t at = 0; at < numel; at += 1000) {
      pack_elements(&x[static_cast<size_t>(at)], Dtype::kFloat32,
                    parts.data() + static_cast<size_t>(at) * step, to,
                    std::min<int64_t>(1000, numel - at), GetParam());
    }
    EXPECT_TRUE(whole == parts) << dtype_name(to);
  }
}

/// All 65536 elements of a 2-byte type, in the order of their bits.
Bytes every_element() {
  Bytes elements(size_t{65536} * 2);
  for (size_t k = 0; k < 65536; ++k) reference::put(static_cast<uint16_t>(k), &elements[2 * k]);
  return elements;
}

/// Every finite value of a 2-byte type, the midpoint beyond it, and that midpoint's neighbours.
std::vector<double> values_and_ties(Dtype dtype) {
  const std::vector<double> all = reference::decode_all(dtype, every_element());
  std::vector<double> values;
  for (size_t k = 0; k + 1 < all.size(); ++k) {
    if (!std::isfinite(all[k])) continue;
    const double beyond = std::isfinite(all[k + 1]) ? all[k + 1] : 2 * all[k];
    const double tie = all[k] + (beyond - all[k]) / 2;
    for (const double v : {all[k], tie, std::nextafter(tie, kInf), std::nextafter(tie, -kInf)}) {
      values.push_back(v);
    }
  }
  return values;
}

TEST_P(EveryLevel, RoundsEveryTieOfTheTwoByteTypesToEvenFromFloat64AndFloat32) {
  for (const Dtype to : {Dtype::kFloat16, Dtype::kBfloat16}) {
    for (const Dtype from : {Dtype::kFloat64, Dtype::kFloat32}) {
      const Bytes x = reference::encode_all(from, values_and_ties(to));
      const Bytes wanted = reference::encode_all(to, reference::decode_all(from, x));
      EXPECT_TRUE(same_elements(to, pack(from, to, x), wanted))
          << dtype_name(from) << " to " << dtype_name(to);
    }
  }
}

TEST_P(EveryLevel, WidensEveryTwoByteValueExactly) {
  for (const Dtype from : {Dtype::kFloat16, Dtype::kBfloat16}) {
    const Bytes x = every_element();
    for (const Dtype to : {Dtype::kFloat32, Dtype::kFloat64}) {
      const Bytes wide = pack(from, to, x);
      EXPECT_TRUE(
          same_elements(to, wide, reference::encode_all(to, reference::decode_all(from, x))));
      EXPECT_TRUE(same_elements(from, pack(to, from, wide), x));
    }
  }
}

TEST_P(EveryLevel, Float16OverflowBecomesInfinityAndIsCounted) {
  int64_t non_finite = -1;
  const std::vector<double> values{65519.0, 65520.0, -65520.0, 1e30, 65504.0};
  const Bytes packed = pack(Dtype::kFloat32, Dtype::kFloat16,
                            reference::encode_all(Dtype::kFloat32, values), &non_finite);
  EXPECT_EQ(reference::decode_all(Dtype::kFloat16, packed),
            (std::vector<double>{65504.0, kInf, -kInf, kInf, 65504.0}));
  EXPECT_EQ(non_finite, 3);
}

TEST_P(EveryLevel, KeepsNansWhateverTheirPayload) {
  for (const uint32_t bits : {0x7f800001U, 0x7fffffffU, 0xff800001U, 0xffffffffU, 0x7f808000U}) {
    Bytes x(33 * 4);
    for (size_t k = 0; k < 33; ++k) reference::put(bits, &x[4 * k]);
    for (const Dtype to : kDtypes) {
      int64_t non_finite = -1;
      for (const double v : reference::decode_all(to, pack(Dtype::kFloat32, to, x, &non_finite))) {
        EXPECT_TRUE(std::isnan(v)) << std::hex << bits << " to " << dtype_name(to);
      }
      EXPECT_EQ(non_finite, 33);
    }
  }
}

TEST_P(EveryLevel, CountsNonFiniteValuesWhereverTheyAreAndKeepsThemThere) {
  for (const Dtype from : kDtypes) {
    for (const int64_t numel : {1, 9, 33, 513, 1025}) {
      const auto last = static_cast<size_t>(numel - 1);
      for (const size_t at : {size_t{0}, last / 2, last}) {
        for (const double bad : {kNan, kInf, -kInf}) {
          std::vector<double> values(static_cast<size_t>(numel), 1.5);
          values[at] = bad;
          int64_t non_finite = -1;
          const Bytes x = reference::encode_all(from, values);
          EXPECT_TRUE(same_elements(from, pack(from, from, x, &non_finite), x));
          EXPECT_EQ(non_finite, 1) << dtype_name(from) << ", element " << at << " of " << numel;
        }
      }
    }
  }
}

TEST_P(EveryLevel, CountsNothingInTheLargestFiniteValues) {
  for (const Dtype from : kDtypes) {
    const double largest = reference::format(from).largest;
    int64_t non_finite = -1;
    pack(from, from, reference::encode_all(from, std::vector<double>{largest, -largest, 0.0}),
         &non_finite);
    EXPECT_EQ(non_finite, 0) << dtype_name(from);
  }
}

// --- mix

Bytes reference_mix(Dtype dtype, Dtype own, const Bytes& x, std::span<const MixInput> inputs) {
  std::vector<double> values = reference::decode_all(dtype, x);
  for (size_t k = 0; k < values.size(); ++k) {
    std::vector<reference::WeightedValue> messages;
    for (const MixInput& m : inputs) {
      messages.push_back({reference::element(m.dtype, m.data, static_cast<int64_t>(k)), m.weight});
    }
    values[k] = reference::mix_element(dtype, values[k], own, messages);
  }
  return reference::encode_all(dtype, values);
}

void expect_mix_equals_reference(Dtype dtype, Dtype own, std::vector<Dtype> messages, int64_t numel,
                                 SimdLevel level, double weight = 0.3) {
  const Bytes x = reference::encode_all(dtype, varied_values(numel, 2));
  std::vector<Misaligned> received;
  std::vector<MixInput> inputs;
  for (size_t j = 0; j < messages.size(); ++j) {
    const auto values = varied_values(numel, static_cast<uint32_t>(3 + j));
    received.emplace_back(reference::encode_all(messages[j], values));
  }
  for (size_t j = 0; j < messages.size(); ++j) {
    inputs.push_back({received[j].data(), messages[j], weight / static_cast<double>(j + 1)});
  }
  Misaligned mixed(x);
  mix_elements(mixed.data(), dtype, own, inputs, numel, level);
  EXPECT_TRUE(same_elements(dtype, mixed.bytes(), reference_mix(dtype, own, x, inputs)))
      << dtype_name(dtype) << ", own " << dtype_name(own) << ", " << messages.size()
      << " messages, " << numel << " elements";
}

TEST_P(EveryLevel, MixOfOneMessageEqualsTheScalarFormula) {
  for (const Dtype dtype : kDtypes) {
    for (const Dtype own : kDtypes) {
      for (const Dtype message : kDtypes) {
        for (const int64_t numel : kNumels) {
          expect_mix_equals_reference(dtype, own, {message}, numel, GetParam());
        }
      }
    }
  }
}

TEST_P(EveryLevel, MixOfSeveralMessagesEqualsTheScalarFormulaInTheirOrder) {
  for (const Dtype dtype : kDtypes) {
    for (const Dtype wire : kDtypes) {
      const Dtype own = wire_dtype(dtype, wire);
      for (const int64_t numel : kNumels) {
        expect_mix_equals_reference(dtype, own, {own, own}, numel, GetParam());
        expect_mix_equals_reference(dtype, own, {own, Dtype::kFloat32, own}, numel, GetParam());
      }
    }
  }
}

TEST_P(EveryLevel, MixWithAWeightOfOneEqualsTheScalarFormula) {
  for (const Dtype dtype : kDtypes) {
    for (const Dtype wire : kDtypes) {
      const Dtype own = wire_dtype(dtype, wire);
      for (const int64_t numel : kNumels) {
        expect_mix_equals_reference(dtype, own, {own}, numel, GetParam(), 1.0);
        expect_mix_equals_reference(dtype, own, {Dtype::kFloat32}, numel, GetParam(), 1.0);
        expect_mix_equals_reference(dtype, own, {own, own}, numel, GetParam(), 1.0);
      }
    }
  }
}

TEST_P(EveryLevel, AWeightOfOneMakesWhatWasSentToWhatHasArrived) {
  for (const Dtype dtype : kDtypes) {
    const auto numbers = [](uint32_t seed) {
      std::vector<double> values = varied_values(1000, seed);
      std::erase_if(values, [](double value) { return !(std::abs(value) < 1e4); });
      values.resize(500);
      return values;
    };
    Bytes x = reference::encode_all(dtype, numbers(8));
    const Bytes message = reference::encode_all(dtype, numbers(9));
    const MixInput input{message.data(), dtype, 1.0};
    mix_elements(x.data(), dtype, dtype, {&input, 1}, 500, GetParam());
    EXPECT_EQ(reference::decode_all(dtype, x), reference::decode_all(dtype, message));
  }
}

TEST_P(EveryLevel, MixOfNoMessageChangesNothing) {
  const Bytes x = reference::encode_all(Dtype::kFloat16, varied_values(100, 5));
  Bytes mixed = x;
  mix_elements(mixed.data(), Dtype::kFloat16, Dtype::kFloat16, {}, 100, GetParam());
  EXPECT_EQ(mixed, x);
}

TEST_P(EveryLevel, NansInEitherOperandReachTheResult) {
  for (const Dtype own : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16}) {
    std::vector<float> x{std::numeric_limits<float>::quiet_NaN(), 1.0F, 2.0F};
    reference::put(0x7fffffffU, reinterpret_cast<std::byte*>(x.data()));
    const Bytes message = reference::encode_all(own, std::vector<double>{1.0, kNan, 4.0});
    const MixInput input{message.data(), own, 0.5};
    mix_elements(x.data(), Dtype::kFloat32, own, {&input, 1}, 3, GetParam());
    EXPECT_TRUE(std::isnan(x[0]));
    EXPECT_TRUE(std::isnan(x[1]));
    EXPECT_EQ(x[2], 3.0F);
  }
}

/// Both ends of an exchange with weight 1/2 each way under `wire`.
void exchange(std::vector<float>& a, std::vector<float>& b, Dtype wire, SimdLevel level) {
  const auto numel = static_cast<int64_t>(a.size());
  Bytes from_a(a.size() * dtype_bytes(wire));
  Bytes from_b(b.size() * dtype_bytes(wire));
  pack_elements(a.data(), Dtype::kFloat32, from_a.data(), wire, numel, level);
  pack_elements(b.data(), Dtype::kFloat32, from_b.data(), wire, numel, level);
  const MixInput to_a{from_b.data(), wire, 0.5};
  const MixInput to_b{from_a.data(), wire, 0.5};
  mix_elements(a.data(), Dtype::kFloat32, wire, {&to_a, 1}, numel, level);
  mix_elements(b.data(), Dtype::kFloat32, wire, {&to_b, 1}, numel, level);
}

TEST_P(EveryLevel, AnExchangeOfSmallIntegersKeepsTheirMeanExactly) {
  std::mt19937 random(7);
  std::uniform_int_distribution<int> integers(-4096, 4096);
  for (const Dtype wire : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16}) {
    std::vector<float> a(1025);
    std::vector<float> b(1025);
    for (float& v : a) v = static_cast<float>(integers(random));
    for (float& v : b) v = static_cast<float>(integers(random));
    const std::vector<float> a0 = a;
    const std::vector<float> b0 = b;
    exchange(a, b, wire, GetParam());
    for (size_t k = 0; k < a.size(); ++k) EXPECT_EQ(a[k] + b[k], a0[k] + b0[k]);
  }
}

TEST_P(EveryLevel, AnExchangeUnderA2ByteWireKeepsTheMeanToFloat32Rounding) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  for (const Dtype wire : {Dtype::kFloat16, Dtype::kBfloat16}) {
    std::vector<float> a(4099);
    std::vector<float> b(4099);
    for (float& v : a) v = normal(random);
    for (float& v : b) v = normal(random);
    const std::vector<float> a0 = a;
    const std::vector<float> b0 = b;
    exchange(a, b, wire, GetParam());
    for (size_t k = 0; k < a.size(); ++k) {
      const double drift = (double{a[k]} + b[k]) - (double{a0[k]} + b0[k]);
      EXPECT_LE(std::abs(drift), 0x1p-24 * (std::abs(a[k]) + std::abs(b[k])));
    }
  }
}

// --- choice of level and of wire

TEST(Kernels, ALevelThatTheCpuLacksIsRefused) {
  if (simd_level() == SimdLevel::kAvx512) GTEST_SKIP() << "this CPU has every level";
  float x = 1.0F;
  EXPECT_THROW(mix_elements(&x, Dtype::kFloat32, Dtype::kFloat32, {}, 1, SimdLevel::kAvx512),
               std::logic_error);
}

TEST(WireDtype, IsTheNarrowerOfTensorAndWireAndNeverChangesBetween2ByteTypes) {
  EXPECT_EQ(wire_dtype(Dtype::kFloat32, Dtype::kBfloat16), Dtype::kBfloat16);
  EXPECT_EQ(wire_dtype(Dtype::kFloat64, Dtype::kFloat16), Dtype::kFloat16);
  EXPECT_EQ(wire_dtype(Dtype::kFloat64, Dtype::kFloat32), Dtype::kFloat64);
  EXPECT_EQ(wire_dtype(Dtype::kFloat32, Dtype::kFloat64), Dtype::kFloat32);
  EXPECT_EQ(wire_dtype(Dtype::kBfloat16, Dtype::kFloat16), Dtype::kBfloat16);
  EXPECT_EQ(wire_dtype(Dtype::kFloat16, Dtype::kFloat32), Dtype::kFloat16);
}

}  // namespace
}  // namespace crossover
