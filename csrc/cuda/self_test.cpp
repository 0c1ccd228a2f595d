#include "cuda/self_test.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/clock.h"
#include "core/error.h"
#include "core/pipe.h"
#include "core/stream_transport.h"
#include "cuda/nccl_transport.h"

namespace crossover {
namespace {

constexpr int64_t kNumel = 10007;  // neither a multiple of a vector nor of a tile
constexpr double kTimeout_s = 60.0;

using Floats = std::vector<float>;

// Values that bfloat16 holds exactly.
Floats ramp(float first) {
  Floats values(kNumel);
  for (int64_t i = 0; i < kNumel; ++i) {
    values[static_cast<size_t>(i)] = first + static_cast<float>(i % 64);
  }
  return values;
}

size_t wire_bytes(Dtype wire) { return static_cast<size_t>(kNumel) * dtype_bytes(wire); }

void repeat_until(Device& device, const char* what, const std::function<bool()>& done) {
  const SteadyClock clock;
  const double began_s = clock.now_s();
  while (!done()) {
    device.poll();
    if (clock.now_s() - began_s > kTimeout_s) {
      throw DeviceError(std::string(what) + " did not end within 60 s");
    }
    std::this_thread::yield();
  }
}

/// Device memory that holds kNumel float32 values.
class Values {
 public:
  explicit Values(Device& device)
      : device_(device), buffer_(device.allocate(wire_bytes(Dtype::kFloat32))) {}
  Values(Device& device, const Floats& values) : Values(device) {
    const auto sink = device.sink(*buffer_, wire_bytes(Dtype::kFloat32));
    const auto bytes = std::as_bytes(std::span<const float>(values));
    size_t at = 0;
    repeat_until(device, "a copy to the device", [&] {
      at += sink->consume(bytes.subspan(at));
      return at == bytes.size();
    });
    device.drain();
  }

  DeviceBuffer& buffer() { return *buffer_; }
  TensorList tensors() {
    address_ = buffer_->data();
    TensorList list{.dtype = Dtype::kFloat32, .addresses = {&address_, 1}, .numels = {&numel_, 1}};
    list.buffer = buffer_.get();
    return list;
  }
  WeightedMessage message(double weight) {
    WeightedMessage message{buffer_->data(), {0, kNumel}, Dtype::kFloat32, weight};
    message.buffer = buffer_.get();
    return message;
  }
  std::unique_ptr<MessageSource> source(Dtype wire) {
    PackSpec spec;
    spec.tensors = tensors();
    spec.slice = {0, kNumel};
    spec.wire = wire;
    spec.where = "the self-test";
    return device_.source(spec);
  }
  std::vector<std::byte> read(Dtype wire) {
    const auto source = this->source(wire);
    std::vector<std::byte> bytes(wire_bytes(wire));
    size_t at = 0;
    repeat_until(device_, "a copy from the device", [&] {
      at += source->produce(std::span<std::byte>(bytes).subspan(at));
      return at == bytes.size();
    });
    return bytes;
  }

 private:
  Device& device_;
  const std::unique_ptr<DeviceBuffer> buffer_;
  const int64_t numel_ = kNumel;
  void* address_ = nullptr;
};

void expect_floats(const std::vector<std::byte>& bytes, const Floats& expected, const char* what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    float got = 0.0F;
    std::memcpy(&got, bytes.data() + i * sizeof(float), sizeof(float));
    if (got == expected[i]) continue;
    throw DeviceError(std::string(what) + ": element " + std::to_string(i) + ": expected " +
                      std::to_string(expected[i]) + ", got " + std::to_string(got));
  }
}

}  // namespace

void check_pack(Device& device) {
  const Floats values = ramp(1.0F);
  Values x(device, values);
  const std::vector<std::byte> packed = x.read(Dtype::kBfloat16);
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t got = 0;
    std::memcpy(&got, packed.data() + i * sizeof(uint16_t), sizeof(uint16_t));
    const uint32_t expected = std::bit_cast<uint32_t>(values[i]) >> 16;
    if (got == expected) continue;
    throw DeviceError("pack: element " + std::to_string(i) + ": expected bits " +
                      std::to_string(expected) + ", got " + std::to_string(got));
  }
}

void check_mix(Device& device) {
  const Floats own = ramp(1.0F);
  const Floats first = ramp(9.0F);
  const Floats second = ramp(17.0F);
  Values x(device, own);
  Values y(device, first);
  Values z(device, second);
  const std::vector<WeightedMessage> messages{y.message(0.25), z.message(0.25)};
  device.mix(x.tensors(), Dtype::kFloat32, messages);
  device.drain();
  Floats expected(own.size());
  for (size_t i = 0; i < own.size(); ++i) {
    const float partly = std::fma(0.25F, first[i] - own[i], own[i]);
    expected[i] = std::fma(0.25F, second[i] - own[i], partly);
  }
  expect_floats(x.read(Dtype::kFloat32), expected, "mix");
}

void check_self_exchange(const std::shared_ptr<Device>& device,
                         std::shared_ptr<const NcclLibrary> library,
                         std::shared_ptr<StreamEvents> events) {
  const Floats values = ramp(3.0F);
  Values x(*device, values);
  Values inbox(*device);
  const SteadyClock clock;
  NcclTransportConfig config;
  config.communicator.id = library->unique_id();
  config.host_ready = false;  // nobody to agree with
  std::vector<std::unique_ptr<Pipe>> no_pipes(1);
  const auto source = x.source(Dtype::kFloat32);
  const auto sink = device->sink(inbox.buffer(), wire_bytes(Dtype::kFloat32));
  {
    NcclTransport transport(config, std::move(library), std::move(events), device,
                            std::make_unique<StreamTransport>(StreamConfig{}, std::move(no_pipes)),
                            clock);
    transport.receive(0, {}, *sink, 1);
    transport.send(0, {}, *source, 2);
    transport.phase_posted({}, true);
    std::vector<TransportEvent> happened;
    transport.say_farewell({});
    repeat_until(*device, "the exchange through NCCL", [&] {
      transport.progress(clock.now_s(), happened);
      return transport.drained();
    });
    check(happened.size() == 2, "a message is sent and received");
  }
  device->drain();
  expect_floats(inbox.read(Dtype::kFloat32), values, "the exchange through NCCL");
}

}  // namespace crossover
