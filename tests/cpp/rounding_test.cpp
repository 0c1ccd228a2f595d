// Stochastic rounding into 2-byte elements.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "host/host_device.h"
#include "host/kernels.h"
#include "kernel_inputs.h"
#include "scalar_reference.h"

namespace crossover {
namespace {

using reference::Bytes;

constexpr Dtype kNarrow[] = {Dtype::kFloat16, Dtype::kBfloat16};
constexpr uint64_t kKey = 0x123456789abcdef1;
constexpr int64_t kManyNumel = 40'000;

class Rounding : public testing::TestWithParam<SimdLevel> {
 protected:
  void SetUp() override {
    if (GetParam() > simd_level()) GTEST_SKIP() << "this CPU lacks the instruction set";
  }
  Bytes rounded_bytes(const std::vector<float>& x, Dtype dtype, int64_t first = 0) {
    Misaligned out(Bytes(2 * x.size()));
    round_elements(x, out.data(), dtype, kKey, first, GetParam());
    return out.bytes();
  }
  std::vector<double> rounded(const std::vector<float>& x, Dtype dtype, int64_t first = 0) {
    return reference::decode_all(dtype, rounded_bytes(x, dtype, first));
  }
};

std::string level_name(const testing::TestParamInfo<SimdLevel>& info) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512"};
  return kNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Levels, Rounding,
                         testing::Values(SimdLevel::kPortable, SimdLevel::kAvx2,
                                         SimdLevel::kAvx512),
                         level_name);

std::vector<float> floats(int64_t numel, uint32_t seed) {
  const std::vector<double> values = varied_values(numel, seed);
  return {values.begin(), values.end()};
}

/// The neighbours of x in the type, the same twice if it holds x.
std::pair<double, double> neighbours(Dtype dtype, double x) {
  const double nearest = reference::round_to(dtype, x);
  if (nearest == x || !std::isfinite(nearest)) return {nearest, nearest};
  const reference::Format f = reference::format(dtype);
  const int exponent = std::max(std::ilogb(x), f.smallest_exponent) - (f.precision - 1);
  const double unit = std::scalbn(1.0, exponent);
  const double below = std::floor(x / unit) * unit;
  return {below, below + unit};
}

TEST_P(Rounding, GivesOneOfTheTwoNeighboursAndKeepsWhatTheTypeHolds) {
  for (const Dtype dtype : kNarrow) {
    const std::vector<float> x = floats(4000, 1);
    const std::vector<double> got = rounded(x, dtype);
    for (size_t k = 0; k < x.size(); ++k) {
      if (std::abs(x[k]) >= reference::format(dtype).largest) continue;
      const auto [below, above] = neighbours(dtype, x[k]);
      EXPECT_TRUE(got[k] == below || got[k] == above)
          << dtype_name(dtype) << ": " << x[k] << " became " << got[k];
    }
  }
}

TEST_P(Rounding, KeepsTheExpectation) {
  constexpr size_t kNumel = 40'000;
  for (const Dtype dtype : kNarrow) {
    for (const float x : {1.0009F, -3.1F, 1e-3F, 2.0e-6F}) {
      const auto [below, above] = neighbours(dtype, x);
      const double chance = (x - below) / (above - below);
      double mean = 0.0;
      for (const double value : rounded(std::vector<float>(kNumel, x), dtype)) mean += value;
      mean /= kNumel;
      const double deviation = (above - below) * std::sqrt(chance * (1 - chance) / kNumel);
      EXPECT_NEAR(mean, x, 5 * deviation + 1e-3 * (above - below)) << dtype_name(dtype);
    }
  }
}

TEST_P(Rounding, IsThatOfThePortableKernelAndDependsOnTheElementAlone) {
  const std::vector<float> x = floats(1000, 2);
  for (const Dtype dtype : kNarrow) {
    Bytes portable(2 * x.size());
    round_elements(x, portable.data(), dtype, kKey, 0, SimdLevel::kPortable);
    EXPECT_EQ(rounded_bytes(x, dtype), portable);
    const std::vector<float> tail(x.begin() + 333, x.end());
    const Bytes part = rounded_bytes(tail, dtype, 333);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), portable.begin() + 2 * 333));
  }
}

TEST_P(Rounding, KeepsNanAndInfinity) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const Dtype dtype : kNarrow) {
    const std::vector<double> got =
        rounded({infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}, dtype);
    EXPECT_EQ(got[0], infinity);
    EXPECT_EQ(got[1], -infinity);
    EXPECT_TRUE(std::isnan(got[2]));
  }
}

TEST(RoundingHostDevice, MixesInto2ByteTensorsByTheKeyAndTheElementOfTheSegment) {
  const std::vector<int64_t> sizes{700, 3, 2000};
  const Dtype dtype = Dtype::kBfloat16;
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  std::vector<Bytes> memory;
  std::vector<void*> addresses;
  std::vector<float> sums;
  Bytes message;
  for (const int64_t numel : sizes) {
    std::vector<double> x(static_cast<size_t>(numel));
    std::vector<double> m(x.size());
    for (double& value : x) value = reference::round_to(dtype, normal(random));
    for (double& value : m) value = reference::round_to(dtype, normal(random));
    memory.push_back(reference::encode_all(dtype, x));
    const Bytes sent = reference::encode_all(dtype, m);
    message.insert(message.end(), sent.begin(), sent.end());
    for (size_t k = 0; k < x.size(); ++k) {
      const reference::WeightedValue other{m[k], 0.25};
      sums.push_back(static_cast<float>(reference::mix_element(dtype, x[k], x[k], {&other, 1})));
    }
  }
  for (Bytes& tensor : memory) addresses.push_back(tensor.data());
  TensorList list{dtype, addresses, sizes};
  list.rounding_key = kKey;
  const Slice whole{0, static_cast<int64_t>(sums.size())};
  const WeightedMessage weighted{message.data(), whole, dtype, 0.25};
  host_device()->mix(list, dtype, {&weighted, 1});
  Bytes wanted(2 * sums.size());
  round_elements(sums, wanted.data(), dtype, kKey, 0);
  Bytes got;
  for (const Bytes& tensor : memory) got.insert(got.end(), tensor.begin(), tensor.end());
  EXPECT_EQ(got, wanted);
}

/// The mean over two ranks and all elements of 1 and the next number, after both have mixed.
double mean_after_mix(Dtype dtype, std::array<uint64_t, 2> keys) {
  const double step =
      reference::round_to(dtype, 1.0 + std::scalbn(1.0, 1 - reference::format(dtype).precision));
  const std::vector<int64_t> sizes{kManyNumel};
  const std::array<Bytes, 2> before{
      reference::encode_all(dtype, std::vector<double>(kManyNumel, 1.0)),
      reference::encode_all(dtype, std::vector<double>(kManyNumel, step))};
  double sum = 0.0;
  for (size_t rank = 0; rank < 2; ++rank) {
    Bytes x = before[rank];
    void* const address = x.data();
    TensorList list{dtype, {&address, 1}, sizes};
    list.rounding_key = keys[rank];
    const WeightedMessage message{before[1 - rank].data(), {0, kManyNumel}, dtype, 0.5};
    host_device()->mix(list, dtype, {&message, 1});
    for (const double value : reference::decode_all(dtype, x)) sum += value;
  }
  return sum / (2 * kManyNumel);
}

TEST(RoundingHostDevice, KeepsTheMeanOverRanksWhichRoundingToNearestLoses) {
  for (const Dtype dtype : kNarrow) {
    const double step = std::scalbn(1.0, 1 - reference::format(dtype).precision);
    EXPECT_EQ(mean_after_mix(dtype, {0, 0}), 1.0) << dtype_name(dtype);
    const double deviation = step / 2 / std::sqrt(2.0 * kManyNumel);
    EXPECT_NEAR(mean_after_mix(dtype, {kKey, kKey + 2}), 1.0 + step / 2, 5 * deviation);
  }
}

}  // namespace
}  // namespace crossover
