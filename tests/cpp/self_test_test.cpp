// The doctor's self-test passes where all is well and says what is not where it is not.
#include "cuda/self_test.h"

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "resident_device.h"

namespace crossover::testing {
namespace {

/// Mixes nothing.
class IdleDevice final : public Device {
 public:
  MemoryKind memory() const override { return MemoryKind::kHost; }
  std::unique_ptr<DeviceBuffer> allocate(size_t bytes) override {
    return host_device()->allocate(bytes);
  }
  std::unique_ptr<MessageSource> source(const PackSpec& spec) override {
    return host_device()->source(spec);
  }
  std::unique_ptr<MessageSink> sink(DeviceBuffer& buffer, size_t num_bytes) override {
    return host_device()->sink(buffer, num_bytes);
  }
  void mix(const TensorList&, Dtype, std::span<const WeightedMessage>) override {}
  void replace(const TensorList&, Dtype, std::span<const WeightedMessage>) override {}
};

TEST(SelfTest, PackAndMixPassOnAHealthyDevice) {
  EXPECT_NO_THROW(check_pack(*host_device()));
  EXPECT_NO_THROW(check_mix(*host_device()));
}

TEST(SelfTest, AMixThatDoesNothingIsNoticed) {
  IdleDevice device;
  try {
    check_mix(device);
    FAIL() << "an error was expected";
  } catch (const DeviceError& error) {
    EXPECT_EQ(std::string(error.what()), "mix: element 0: expected 7.000000, got 1.000000");
  }
}

TEST(SelfTest, AMessageGoesThroughNcclToThisRankItself) {
  fake_nccl().script("in_progress=3");
  const int before = fake_nccl().standing();
  const auto device = std::make_shared<ResidentDevice>();
  EXPECT_NO_THROW(
      check_self_exchange(device, fake_nccl().library(), std::make_shared<FakeStreamEvents>()));
  EXPECT_EQ(fake_nccl().standing(), before);
}

TEST(SelfTest, AnErrorOfNcclIsPassedOn) {
  fake_nccl().script("failing_group=0");
  const auto device = std::make_shared<ResidentDevice>();
  EXPECT_THROW(
      check_self_exchange(device, fake_nccl().library(), std::make_shared<FakeStreamEvents>()),
      TransportError);
  fake_nccl().script("");
}

}  // namespace
}  // namespace crossover::testing
