#include "host/host_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "scalar_reference.h"

namespace crossover {
namespace {

using reference::Bytes;

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Tensors of given sizes in separate memory, some at odd addresses, and their elements laid end
/// to end as doubles.
class Tensors {
 public:
  Tensors(Dtype dtype, std::vector<int64_t> numels, uint32_t seed)
      : dtype_(dtype), numels_(std::move(numels)) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (size_t t = 0; t < numels_.size(); ++t) {
      std::vector<double> values(static_cast<size_t>(numels_[t]));
      for (double& v : values) v = normal(random);
      const Bytes encoded = reference::encode_all(dtype, values);
      const size_t shift = t % 2;
      memory_.emplace_back(encoded.size() + shift);
      std::copy(encoded.begin(), encoded.end(), memory_.back().begin() + shift);
      addresses_.push_back(memory_.back().data() + shift);
    }
  }

  TensorList list() const { return {dtype_, addresses_, numels_}; }

  std::vector<double> values() const {
    std::vector<double> all;
    for (size_t t = 0; t < numels_.size(); ++t) {
      for (int64_t k = 0; k < numels_[t]; ++k) all.push_back(get(t, k));
    }
    return all;
  }

  double get(size_t tensor, int64_t index) const {
    return reference::element(dtype_, static_cast<const std::byte*>(addresses_[tensor]), index);
  }
  void set(size_t tensor, int64_t index, double value) {
    const size_t at = static_cast<size_t>(index) * dtype_bytes(dtype_);
    reference::encode(dtype_, value, static_cast<std::byte*>(addresses_[tensor]) + at);
  }

 private:
  Dtype dtype_;
  std::vector<int64_t> numels_;
  std::vector<Bytes> memory_;
  std::vector<void*> addresses_;
};

const std::vector<int64_t> kOddSizes{0, 5, 1, 0, 0, 37, 513, 2, 0, 1030, 0};
constexpr int64_t kOddTotal = 5 + 1 + 37 + 513 + 2 + 1030;

/// The elements of `slice` as they are sent.
Bytes expected_message(const std::vector<double>& values, Slice slice, Dtype wire) {
  return reference::encode_all(wire, std::span(values).subspan(static_cast<size_t>(slice.begin),
                                                               static_cast<size_t>(slice.numel())));
}

/// Everything the source has, pulled through windows of sizes that `next_size` gives.
template <class NextSize>
Bytes pull(MessageSource& source, NextSize next_size) {
  Bytes message;
  while (message.size() < source.num_bytes()) {
    Bytes window(next_size());
    const size_t produced = source.produce(window);
    EXPECT_LE(produced, window.size());
    message.insert(message.end(), window.begin(),
                   window.begin() + static_cast<std::ptrdiff_t>(produced));
  }
  return message;
}

PackSpec spec_of(const Tensors& tensors, Slice slice, Dtype wire,
                 NonFinitePolicy policy = NonFinitePolicy::kRaise) {
  return {tensors.list(), slice, wire, policy, "segment 3 'layer4.2'", nullptr};
}

// --- source

TEST(HostSource, PacksSlicesThatCrossTensorBorders) {
  const auto device = host_device();
  for (const Dtype dtype : kDtypes) {
    const Tensors tensors(dtype, kOddSizes, 1);
    for (const Dtype wire_asked : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16}) {
      const Dtype wire = wire_dtype(dtype, wire_asked);
      for (const Slice slice : {Slice{0, kOddTotal}, Slice{4, 7}, Slice{5, 6}, Slice{6, 6},
                                Slice{kOddTotal, kOddTotal}, Slice{40, 1000}}) {
        const auto source = device->source(spec_of(tensors, slice, wire));
        const Bytes message = pull(*source, [&] { return source->num_bytes(); });
        EXPECT_EQ(message, expected_message(tensors.values(), slice, wire))
            << dtype_name(dtype) << " as " << dtype_name(wire) << ", [" << slice.begin << ", "
            << slice.end << ")";
      }
    }
  }
}

TEST(HostSource, ProducingThroughRandomWindowsEqualsProducingAtOnce) {
  const auto device = host_device();
  std::mt19937 random(2);
  std::uniform_int_distribution<size_t> sizes(0, 701);
  for (const Dtype dtype : kDtypes) {
    const Tensors tensors(dtype, kOddSizes, 3);
    const Slice slice{2, kOddTotal - 1};
    const Dtype wire = wire_dtype(dtype, Dtype::kBfloat16);
    const auto source = device->source(spec_of(tensors, slice, wire));
    EXPECT_EQ(pull(*source, [&] { return sizes(random); }),
              expected_message(tensors.values(), slice, wire));
    Bytes window(8);
    EXPECT_EQ(source->produce(window), 0U) << "nothing is left";
  }
}

TEST(HostSource, AWindowSmallerThanAnElementTakesNothing) {
  const Tensors tensors(Dtype::kFloat32, {4}, 4);
  const auto device = host_device();
  const auto source = device->source(spec_of(tensors, {0, 4}, Dtype::kFloat32));
  Bytes window(3);
  EXPECT_EQ(source->produce(window), 0U);
  EXPECT_EQ(source->produce(std::span<std::byte>()), 0U);
}

TEST(HostSource, ReadsTheTensorsAsTheyAreWhenPulled) {
  Tensors tensors(Dtype::kFloat32, {4}, 5);
  const auto device = host_device();
  const auto source = device->source(spec_of(tensors, {0, 4}, Dtype::kFloat32));
  tensors.set(0, 2, 42.0);
  Bytes window(16);
  source->produce(window);
  EXPECT_EQ(reference::element(Dtype::kFloat32, window.data(), 2), 42.0);
}

TEST(HostSource, RefusesASliceOutsideItsTensors) {
  const Tensors tensors(Dtype::kFloat32, {4, 3}, 6);
  const auto device = host_device();
  for (const Slice slice : {Slice{0, 8}, Slice{-1, 2}, Slice{3, 2}}) {
    EXPECT_THROW(device->source(spec_of(tensors, slice, Dtype::kFloat32)), std::logic_error);
  }
}

// --- the guard against NaN and infinity

std::string error_of(MessageSource& source, size_t window_bytes) {
  try {
    pull(source, [&] { return window_bytes; });
  } catch (const NonFiniteError& error) {
    return error.what();
  }
  return "";
}

TEST(NonFiniteGuard, NamesTheSegmentTheTensorAndHowManyValuesWhateverTheWindow) {
  Tensors tensors(Dtype::kFloat32, kOddSizes, 7);
  tensors.set(6, 10, kNan);
  tensors.set(6, 500, -std::numeric_limits<double>::infinity());
  const auto device = host_device();
  for (const size_t window_bytes : {size_t{4}, size_t{64}, size_t{100'000}}) {
    const auto source = device->source(spec_of(tensors, {0, kOddTotal}, Dtype::kBfloat16));
    EXPECT_EQ(
        error_of(*source, window_bytes),
        "segment 3 'layer4.2': tensor 6 holds 2 non-finite values (NaN, infinity, or too large "
        "for bfloat16 on the wire)");
  }
}

TEST(NonFiniteGuard, HandsOverEverythingBeforeTheWindowThatHoldsOne) {
  Tensors tensors(Dtype::kFloat32, {8}, 8);
  tensors.set(0, 4, kNan);
  const auto device = host_device();
  const auto source = device->source(spec_of(tensors, {0, 8}, Dtype::kFloat32));
  Bytes window(16);
  EXPECT_EQ(source->produce(window), 16U);
  EXPECT_THROW(source->produce(window), NonFiniteError);
}

TEST(NonFiniteGuard, SeesOnlyTheSlice) {
  Tensors tensors(Dtype::kFloat32, {8}, 9);
  tensors.set(0, 0, kNan);
  tensors.set(0, 7, kNan);
  const auto device = host_device();
  const auto source = device->source(spec_of(tensors, {1, 7}, Dtype::kFloat32));
  EXPECT_EQ(error_of(*source, 64), "");
  EXPECT_EQ(device->non_finite_found(), 0);
}

TEST(NonFiniteGuard, IgnoringSendsTheValuesAndCountsThem) {
  Tensors tensors(Dtype::kFloat32, {8, 600}, 10);
  tensors.set(0, 4, kNan);
  tensors.set(1, 0, std::numeric_limits<double>::infinity());
  tensors.set(1, 599, kNan);
  const auto device = host_device();
  const auto source =
      device->source(spec_of(tensors, {0, 608}, Dtype::kFloat32, NonFinitePolicy::kIgnore));
  const Bytes message = pull(*source, [] { return size_t{100}; });
  EXPECT_TRUE(std::isnan(reference::element(Dtype::kFloat32, message.data(), 4)));
  EXPECT_TRUE(std::isinf(reference::element(Dtype::kFloat32, message.data(), 8)));
  EXPECT_TRUE(std::isnan(reference::element(Dtype::kFloat32, message.data(), 607)));
  EXPECT_EQ(device->non_finite_found(), 3);
}

// --- whole tensors, buffers and sinks

TEST(PackTensors, LaysWholeTensorsEndToEndAndCounts) {
  Tensors tensors(Dtype::kFloat64, kOddSizes, 11);
  Bytes out(static_cast<size_t>(kOddTotal) * 2);
  EXPECT_EQ(pack_tensors(tensors.list(), Dtype::kBfloat16, out), 0);
  EXPECT_EQ(out, expected_message(tensors.values(), {0, kOddTotal}, Dtype::kBfloat16));
  tensors.set(1, 3, kNan);
  EXPECT_EQ(pack_tensors(tensors.list(), Dtype::kBfloat16, out), 1);
  EXPECT_THROW(pack_tensors(tensors.list(), Dtype::kFloat32, out), std::logic_error);
}

TEST(HostBuffer, IsAlignedAndHoldsWhatASinkTakesInAnyPieces) {
  const auto device = host_device();
  const auto buffer = device->allocate(1000);
  EXPECT_EQ(buffer->size_bytes(), 1000U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 256, 0U);

  Bytes message(999);
  for (size_t k = 0; k < message.size(); ++k) message[k] = static_cast<std::byte>(k * 7);
  const auto sink = device->sink(*buffer, message.size());
  EXPECT_EQ(sink->num_bytes(), 999U);
  size_t taken = 0;
  for (size_t size = 0; taken < message.size(); ++size) {
    const auto piece = std::span<const std::byte>(message).subspan(taken);
    taken += sink->consume(piece.first(std::min(size, piece.size())));
  }
  EXPECT_TRUE(std::equal(message.begin(), message.end(), buffer->data()));
  EXPECT_EQ(sink->consume(message), 0U) << "a full sink takes nothing";
}

TEST(HostBuffer, RefusesWhatDoesNotFit) {
  const auto device = host_device();
  const auto buffer = device->allocate(0);
  EXPECT_NO_THROW(device->sink(*buffer, 0));
  EXPECT_THROW(device->sink(*buffer, 1), std::logic_error);
  EXPECT_THROW(device->allocate(std::numeric_limits<size_t>::max()), DeviceError);
}

// --- mix

/// Messages of given slices with random elements, kept alive.
class Messages {
 public:
  Messages(Dtype dtype, std::vector<Slice> slices, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    for (size_t j = 0; j < slices.size(); ++j) {
      std::vector<double> values(static_cast<size_t>(slices[j].numel()));
      for (double& v : values) v = normal(random);
      memory_.push_back(reference::encode_all(dtype, values));
      list_.push_back({memory_.back().data(), slices[j], dtype, 0.5 / static_cast<double>(j + 1)});
    }
  }
  std::span<const WeightedMessage> list() const { return list_; }

 private:
  std::vector<Bytes> memory_;
  std::vector<WeightedMessage> list_;
};

/// Element by element: the messages that hold it, in their order.
std::vector<double> dense_mix(const Tensors& tensors, Dtype own, const Messages& messages) {
  const Dtype dtype = tensors.list().dtype;
  std::vector<double> values = tensors.values();
  for (size_t k = 0; k < values.size(); ++k) {
    std::vector<reference::WeightedValue> received;
    for (const WeightedMessage& m : messages.list()) {
      const auto index = static_cast<int64_t>(k);
      if (index < m.slice.begin || index >= m.slice.end) continue;
      received.push_back({reference::element(m.dtype, m.data, index - m.slice.begin), m.weight});
    }
    values[k] = reference::round_to(dtype, reference::mix_element(dtype, values[k], own, received));
  }
  return values;
}

void expect_mix_equals_dense(const std::vector<Slice>& slices) {
  const auto device = host_device();
  for (const Dtype dtype : kDtypes) {
    for (const Dtype wire_asked : {Dtype::kFloat32, Dtype::kBfloat16}) {
      const Dtype wire = wire_dtype(dtype, wire_asked);
      const Tensors tensors(dtype, kOddSizes, 12);
      const Messages messages(wire, slices, 13);
      const std::vector<double> wanted = dense_mix(tensors, wire, messages);
      device->mix(tensors.list(), wire, messages.list());
      EXPECT_EQ(tensors.values(), wanted) << dtype_name(dtype) << " as " << dtype_name(wire);
    }
  }
}

TEST(HostMix, OneMessageOverAllTensorsEqualsTheDenseFormula) {
  expect_mix_equals_dense({{0, kOddTotal}});
}

TEST(HostMix, SeveralMessagesOverAllTensorsEqualTheDenseFormula) {
  expect_mix_equals_dense({{0, kOddTotal}, {0, kOddTotal}, {0, kOddTotal}});
}

TEST(HostMix, MessagesOverDisjointSlicesTouchTheirOwnElementsOnly) {
  expect_mix_equals_dense({{600, 1500}, {3, 40}, {1587, 1588}});
}

TEST(HostMix, PartlyOverlappingMessagesAreCombinedWhereTheyOverlapInTheirOrder) {
  expect_mix_equals_dense({{30, 900}, {0, 100}, {50, kOddTotal}, {60, 61}, {70, 70}});
}

TEST(HostMix, NoMessageChangesNothing) { expect_mix_equals_dense({}); }

TEST(HostMix, AMessageOutsideTheTensorsIsRefusedBeforeAnythingIsWritten) {
  const Tensors tensors(Dtype::kFloat32, {4, 3}, 14);
  const std::vector<double> before = tensors.values();
  const Messages messages(Dtype::kFloat32, {{0, 7}, {2, 8}}, 15);
  EXPECT_THROW(host_device()->mix(tensors.list(), Dtype::kFloat32, messages.list()),
               std::logic_error);
  EXPECT_EQ(tensors.values(), before);
}

TEST(HostMix, TakesFloat32MessagesIntoBfloat16Tensors) {
  const Tensors tensors(Dtype::kBfloat16, {100, 29}, 16);
  const Messages messages(Dtype::kFloat32, {{0, 129}}, 17);
  const std::vector<double> wanted = dense_mix(tensors, Dtype::kBfloat16, messages);
  host_device()->mix(tensors.list(), Dtype::kBfloat16, messages.list());
  EXPECT_EQ(tensors.values(), wanted);
}

// --- difference

TEST(HostDifference, IsTheSumOfSquaresOverTheFirstOfEveryThirtyTwoBlocks) {
  const std::vector<int64_t> sizes{0, 5, 300, 40 * kSliceUnitNumel, 1, 30 * kSliceUnitNumel + 7};
  const int64_t total = 5 + 300 + 40 * kSliceUnitNumel + 1 + 30 * kSliceUnitNumel + 7;
  const std::vector<Slice> slices{{0, total}, {3 * kSliceUnitNumel, 50 * kSliceUnitNumel}};
  for (const Dtype dtype : kDtypes) {
    for (const Dtype wire : {dtype, wire_dtype(dtype, Dtype::kBfloat16), Dtype::kInt8Blocks}) {
      const Tensors tensors(dtype, sizes, 18);
      const Messages messages(wire, slices, 19);
      const std::vector<double> own = reference::quantized(wire, tensors.values());
      double squares = 0;
      double own_squares = 0;
      for (const WeightedMessage& message : messages.list()) {
        const size_t num_bytes = packed_bytes(wire, message.slice.numel());
        const std::vector<double> other = reference::decode_all(wire, {message.data, num_bytes});
        for (int64_t k = 0; k < message.slice.numel(); ++k) {
          if (k / kSliceUnitNumel % kMeasuredBlocks != 0) continue;
          const double mine = own[static_cast<size_t>(message.slice.begin + k)];
          const double apart = other[static_cast<size_t>(k)] - mine;
          squares += apart * apart;
          own_squares += mine * mine;
        }
      }
      const Difference found = host_device()->difference(tensors.list(), wire, messages.list());
      EXPECT_DOUBLE_EQ(found.squares, squares) << dtype_name(dtype) << " as " << dtype_name(wire);
      EXPECT_DOUBLE_EQ(found.own_squares, own_squares);
    }
  }
}

TEST(HostDifference, IsNothingWithoutMessages) {
  const Tensors tensors(Dtype::kFloat32, {4}, 20);
  const Difference found = host_device()->difference(tensors.list(), Dtype::kFloat32, {});
  EXPECT_EQ(found.squares, 0.0);
  EXPECT_EQ(found.own_squares, 0.0);
}

}  // namespace
}  // namespace crossover
