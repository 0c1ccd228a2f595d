// Blocks of the int8 wire: kernels of every instruction set and the host's device.
#include <gtest/gtest.h>

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

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16};
constexpr Dtype kBlocks = Dtype::kInt8Blocks;
constexpr int64_t kNumels[] = {0, 1, 127, 128, 129, 511, 512, 513, 1000, 1024};

/// Blocks of ordinary values of unlike magnitudes, one of them all zeros.
std::vector<double> ordinary_values(int64_t numel, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<double> values(static_cast<size_t>(numel));
  for (size_t k = 0; k < values.size(); ++k) {
    const auto block = static_cast<int>(k / kInt8BlockNumel);
    values[k] = block == 2 ? 0.0 : std::scalbn(normal(random), 3 * block - 9);
  }
  return values;
}

class Int8Blocks : public testing::TestWithParam<SimdLevel> {
 protected:
  void SetUp() override {
    if (GetParam() > simd_level()) GTEST_SKIP() << "this CPU lacks the instruction set";
  }
  Bytes pack(Dtype from, const Bytes& x, int64_t* found = nullptr) {
    Misaligned in(x);
    const auto numel = static_cast<int64_t>(x.size() / dtype_bytes(from));
    Misaligned out(Bytes(packed_bytes(kBlocks, numel)));
    const int64_t count = pack_elements(in.data(), from, out.data(), kBlocks, numel, GetParam());
    if (found != nullptr) *found = count;
    return out.bytes();
  }
};

std::string level_name(const testing::TestParamInfo<SimdLevel>& info) {
  constexpr const char* kNames[] = {"portable", "avx2", "avx512"};
  return kNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Levels, Int8Blocks,
                         testing::Values(SimdLevel::kPortable, SimdLevel::kAvx2,
                                         SimdLevel::kAvx512),
                         level_name);

TEST_P(Int8Blocks, PackEqualsTheScalarReference) {
  for (const Dtype from : kDtypes) {
    for (const int64_t numel : kNumels) {
      const Bytes x = reference::encode_all(from, ordinary_values(numel, 1));
      int64_t found = -1;
      EXPECT_EQ(pack(from, x, &found), reference::encode_blocks(reference::decode_all(from, x)))
          << dtype_name(from) << ", " << numel << " elements";
      EXPECT_EQ(found, 0);
    }
  }
}

TEST_P(Int8Blocks, UnpackEqualsTheScalarReference) {
  for (const Dtype to : kDtypes) {
    for (const int64_t numel : kNumels) {
      const Bytes message = reference::encode_blocks(ordinary_values(numel, 2));
      Bytes out(static_cast<size_t>(numel) * dtype_bytes(to));
      pack_elements(message.data(), kBlocks, out.data(), to, numel, GetParam());
      EXPECT_EQ(out, reference::encode_all(to, reference::decode_blocks(message)));
    }
  }
}

TEST_P(Int8Blocks, QuantizingTwiceChangesNothing) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    const Bytes x = reference::encode_all(Dtype::kFloat32, ordinary_values(1000, seed));
    const Bytes once = pack(Dtype::kFloat32, x);
    const Bytes values = reference::encode_all(Dtype::kFloat32, reference::decode_blocks(once));
    EXPECT_EQ(pack(Dtype::kFloat32, values), once);
  }
}

TEST_P(Int8Blocks, AnErrorIsAtMostHalfAStep) {
  const std::vector<double> x = ordinary_values(1000, 3);
  const Bytes message = pack(Dtype::kFloat64, reference::encode_all(Dtype::kFloat64, x));
  const std::vector<double> sent = reference::decode_blocks(message);
  for (size_t k = 0; k < x.size(); ++k) {
    const auto block = reference::int8_block(x, k - k % kInt8BlockNumel);
    EXPECT_LE(std::abs(sent[k] - x[k]), 0.50001 * reference::int8_scale(block)) << k;
  }
}

TEST_P(Int8Blocks, ValuesThatABlockCannotHoldAreCountedAndMakeItNan) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(),
                           -std::numeric_limits<double>::infinity(), 0x1p127, 0x1p200}) {
    std::vector<double> x = ordinary_values(300, 4);
    x[200] = x[130] = bad;
    int64_t found = 0;
    const Bytes message = pack(Dtype::kFloat64, reference::encode_all(Dtype::kFloat64, x), &found);
    EXPECT_EQ(found, 2);
    const std::vector<double> sent = reference::decode_blocks(message);
    for (size_t k = 0; k < x.size(); ++k) EXPECT_EQ(std::isnan(sent[k]), k / 128 == 1) << k;
  }
}

TEST_P(Int8Blocks, TinyBlocksTravelAsZeros) {
  const std::vector<double> x{0x1p-101, -0x1p-149, 0.0};
  EXPECT_EQ(pack(Dtype::kFloat32, reference::encode_all(Dtype::kFloat32, x)), Bytes(4 + 3));
}

void expect_mix(Dtype dtype, const std::vector<Dtype>& types, int64_t numel, double weight,
                SimdLevel level) {
  const Bytes x = reference::encode_all(dtype, ordinary_values(numel, 5));
  std::vector<Misaligned> received;
  std::vector<std::vector<double>> others;
  for (size_t j = 0; j < types.size(); ++j) {
    const Bytes message =
        reference::encode_all(types[j], ordinary_values(numel, static_cast<uint32_t>(6 + j)));
    received.emplace_back(message);
    others.push_back(reference::decode_all(types[j], message));
  }
  std::vector<MixInput> inputs;
  for (size_t j = 0; j < types.size(); ++j)
    inputs.push_back({received[j].data(), types[j], weight});
  std::vector<double> values = reference::decode_all(dtype, x);
  const std::vector<double> sent = reference::quantized(kBlocks, values);
  for (size_t k = 0; k < values.size(); ++k) {
    std::vector<reference::WeightedValue> messages;
    for (const auto& other : others) messages.push_back({other[k], weight});
    values[k] = reference::mix_element(dtype, values[k], sent[k], messages);
  }
  Misaligned mixed(x);
  mix_elements(mixed.data(), dtype, kBlocks, inputs, numel, level);
  EXPECT_EQ(mixed.bytes(), reference::encode_all(dtype, values))
      << dtype_name(dtype) << ", " << types.size() << " messages, " << numel << " elements";
}

TEST_P(Int8Blocks, MixEqualsTheScalarFormula) {
  for (const Dtype dtype : kDtypes) {
    const Dtype sum = dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
    for (const int64_t numel : kNumels) {
      for (const double weight : {0.3, 1.0}) {
        expect_mix(dtype, {kBlocks}, numel, weight, GetParam());
        expect_mix(dtype, {kBlocks, kBlocks}, numel, weight, GetParam());
        expect_mix(dtype, {sum}, numel, weight, GetParam());
      }
    }
  }
}

// --- the host's device

/// Tensors that share blocks of their segment, and one that begins within a block.
const std::vector<int64_t> kSizes{256, 5, 0, 1, 37, 513, 2, 1030};
constexpr int64_t kTotal = 256 + 5 + 1 + 37 + 513 + 2 + 1030;

struct Tensors {
  explicit Tensors(uint32_t seed) : flat(ordinary_values(kTotal, seed)) {
    auto from = flat.begin();
    for (const int64_t numel : kSizes) {
      memory.emplace_back(from, from + numel);
      from += numel;
    }
    for (auto& tensor : memory) addresses.push_back(tensor.data());
    std::vector<float> rounded(flat.begin(), flat.end());
    flat.assign(rounded.begin(), rounded.end());
  }
  TensorList list() const { return {Dtype::kFloat32, addresses, kSizes}; }
  std::vector<double> values() const {
    std::vector<double> all;
    for (const auto& tensor : memory) all.insert(all.end(), tensor.begin(), tensor.end());
    return all;
  }

  std::vector<double> flat;  // as they were at first
  std::vector<std::vector<float>> memory;
  std::vector<void*> addresses;
};

std::vector<double> part(const std::vector<double>& all, Slice slice) {
  return {all.begin() + slice.begin, all.begin() + slice.end};
}

PackSpec spec_of(const Tensors& tensors, Slice slice) {
  return {tensors.list(), slice, kBlocks, NonFinitePolicy::kRaise, "segment 0", nullptr};
}

TEST(Int8HostDevice, PacksBlocksOfTheSegmentThroughAnyWindow) {
  const Tensors tensors(1);
  for (const Slice slice : {Slice{0, kTotal}, Slice{128, 640}, Slice{384, kTotal}}) {
    for (const size_t window_bytes : {size_t{132}, size_t{300}, size_t{100'000}}) {
      const auto device = host_device();
      const auto source = device->source(spec_of(tensors, slice));
      Bytes message;
      while (message.size() < source->num_bytes()) {
        Bytes window(window_bytes);
        const size_t made = source->produce(window);
        ASSERT_GT(made, 0U);
        message.insert(message.end(), window.begin(),
                       window.begin() + static_cast<ptrdiff_t>(made));
      }
      EXPECT_EQ(message, reference::encode_blocks(part(tensors.flat, slice)));
    }
  }
}

TEST(Int8HostDevice, RefusesASliceThatCutsABlock) {
  const Tensors tensors(1);
  EXPECT_THROW(host_device()->source(spec_of(tensors, {64, kTotal})), std::logic_error);
  EXPECT_THROW(host_device()->source(spec_of(tensors, {0, 64})), std::logic_error);
}

TEST(Int8HostDevice, NamesTheTensorOfAValueInASharedBlock) {
  Tensors tensors(1);
  tensors.memory[4][36] = std::numeric_limits<float>::infinity();
  const auto device = host_device();
  const auto source = device->source(spec_of(tensors, {0, kTotal}));
  Bytes window(source->num_bytes());
  try {
    source->produce(window);
    FAIL() << "an infinity was sent";
  } catch (const NonFiniteError& error) {
    EXPECT_STREQ(error.what(),
                 "segment 0: tensor 4 holds 1 non-finite value (NaN, infinity, or too large for "
                 "int8-blocks on the wire)");
  }
}

TEST(Int8HostDevice, MixesAndReplacesAcrossTensors) {
  const std::vector<double> theirs = ordinary_values(kTotal, 9);
  for (const Slice slice : {Slice{0, kTotal}, Slice{256, 512}, Slice{384, kTotal}}) {
    Bytes message = reference::encode_blocks(part(theirs, slice));
    const WeightedMessage weighted{message.data(), slice, kBlocks, 0.25};
    Tensors mixed(2);
    Tensors replaced(2);
    host_device()->mix(mixed.list(), kBlocks, {&weighted, 1});
    host_device()->replace(replaced.list(), kBlocks, {&weighted, 1});
    const std::vector<double> sent = reference::quantized(kBlocks, mixed.flat);
    const std::vector<double> arrived = reference::decode_blocks(message);
    for (int64_t k = 0; k < kTotal; ++k) {
      const bool holds = k >= slice.begin && k < slice.end;
      const double x = mixed.flat[k];
      const double other = holds ? arrived[k - slice.begin] : 0.0;
      const reference::WeightedValue value{other, 0.25};
      const double wanted =
          holds ? reference::mix_element(Dtype::kFloat32, x, sent[k], {&value, 1}) : x;
      ASSERT_EQ(mixed.values()[k], wanted) << k;
      ASSERT_EQ(replaced.values()[k], holds ? other : x) << k;
    }
  }
}

}  // namespace
}  // namespace crossover
