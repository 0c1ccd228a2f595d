// The CUDA device against the host's arithmetic, both ways a message can take.
#include <algorithm>
#include <condition_variable>
#include <mutex>

#include "cuda/cuda_device.h"
#include "gpu_memory.h"

namespace crossover::testing {
namespace {

constexpr double kWait_s = 20.0;

/// Lets the test sleep until the device says that a copy is done.
class Waker {
 public:
  void wake() {
    const std::lock_guard lock(mutex_);
    woken_ = true;
    changed_.notify_all();
  }
  void sleep() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(
        changed_.wait_for(lock, std::chrono::duration<double>(kWait_s), [&] { return woken_; }));
    woken_ = false;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = false;
};

/// One rank's float32 tensors on the GPU, their image on the host, and an inbox.
class Rank {
 public:
  Rank(std::shared_ptr<CudaRuntime> runtime, CudaDevice& shared, std::vector<int64_t> sizes,
       Dtype wire_type, uint32_t seed)
      : wire(wire_type),
        device(shared),
        training(*runtime),
        numels(std::move(sizes)),
        notes(device.notes(numels)) {
    for (const int64_t numel : numels) {
      total += numel;
      const Bytes elements = random_elements(Dtype::kFloat32, numel, Values::kNormal, seed++);
      image.insert(image.end(), elements.begin(), elements.end());
      tensors.push_back(std::make_unique<GpuBytes>(*runtime, training.get(), elements, 0));
      addresses.push_back(tensors.back()->data());
    }
    inbox = device.allocate(num_bytes());
  }

  size_t num_bytes() const { return static_cast<size_t>(total) * dtype_bytes(wire); }
  Slice whole() const { return {0, total}; }
  TensorList list() const {
    return {Dtype::kFloat32, addresses, numels, notes.get(), nullptr, training.get()};
  }
  std::unique_ptr<MessageSource> source() {
    return device.source({list(), whole(), wire, NonFinitePolicy::kRaise, "segment 0",
                          device.fence(training.get())});
  }
  void mix(double weight) {
    const WeightedMessage message{inbox->data(), whole(), wire, weight, inbox.get()};
    device.mix(list(), wire, {&message, 1});
  }
  Bytes message() const {
    Bytes packed(num_bytes());
    pack_elements(image.data(), Dtype::kFloat32, packed.data(), wire, total);
    return packed;
  }
  void mix_image(const Bytes& from, double weight) {
    const MixInput input{from.data(), wire, weight};
    mix_elements(image.data(), Dtype::kFloat32, wire, {&input, 1}, total);
  }
  Bytes get() const {
    Bytes all;
    for (const auto& tensor : tensors) {
      const Bytes content = tensor->get();
      all.insert(all.end(), content.begin(), content.end());
    }
    return all;
  }

  Dtype wire;
  CudaDevice& device;
  CudaStream training;
  std::vector<int64_t> numels;
  std::unique_ptr<TensorNotes> notes;
  int64_t total = 0;
  std::vector<std::unique_ptr<GpuBytes>> tensors;
  std::vector<void*> addresses;
  std::unique_ptr<DeviceBuffer> inbox;
  Bytes image;
};

void move_staged(MessageSource& source, MessageSink& sink, Waker& waker) {
  Bytes window(size_t{256} << 10);
  for (size_t moved = 0; moved < source.num_bytes();) {
    const size_t produced = source.produce(window);
    if (produced == 0) waker.sleep();
    std::span<const std::byte> left(window.data(), produced);
    while (!left.empty()) {
      const size_t taken = sink.consume(left);
      if (taken == 0) waker.sleep();
      left = left.subspan(taken);
    }
    moved += produced;
  }
}

/// A copy within the GPU, done by the pack kernel, as a transport's stream would have it.
void move_resident(CudaRuntime& runtime, StreamHandle stream, MessageSource& source,
                   MessageSink& sink, Dtype wire) {
  const auto numel = static_cast<int64_t>(source.num_bytes() / dtype_bytes(wire));
  const std::byte* from = source.acquire(stream);
  const BoundTensors bound = bind_single(const_cast<std::byte*>(from), numel, {0, numel});
  PackLaunch copy;
  copy.table = bound.table;
  copy.tiles = bound.tiles;
  copy.slice = {0, numel};
  copy.out = sink.acquire(stream);
  copy.from = copy.to = wire;
  runtime.launch(copy, stream);
  source.release(stream);
  sink.release(stream);
}

class CudaDeviceRounds : public OnGpu {
 protected:
  void expect_exact(Dtype wire, bool staged, const std::vector<int64_t>& numels) {
    CudaDevice device(runtime, 0);
    Waker waker;
    device.set_waker([&] { waker.wake(); });
    Rank a(runtime, device, numels, wire, 1);
    Rank b(runtime, device, numels, wire, 100);
    for (int round = 0; round < 4; ++round) {
      const auto to_b = b.device.sink(*b.inbox, b.num_bytes());
      const auto to_a = a.device.sink(*a.inbox, a.num_bytes());
      const auto from_a = a.source();
      const auto from_b = b.source();
      if (staged) {
        move_staged(*from_a, *to_b, waker);
        move_staged(*from_b, *to_a, waker);
      } else {
        move_resident(*runtime, stream->get(), *from_a, *to_b, wire);
        move_resident(*runtime, stream->get(), *from_b, *to_a, wire);
      }
      a.mix(0.5);
      b.mix(0.25);
      const Bytes sent_by_a = a.message();
      a.mix_image(b.message(), 0.5);
      b.mix_image(sent_by_a, 0.25);
      device.poll();
    }
    expect_same(Dtype::kFloat32, a.get(), a.image, "rank a");
    expect_same(Dtype::kFloat32, b.get(), b.image, "rank b");
    device.set_waker(nullptr);
  }
};

const std::vector<int64_t> kNumels{5, 0, 4097, 1, 4096, 37, 3000000};

TEST_F(CudaDeviceRounds, AreExactWithResidentMessages) {
  expect_exact(Dtype::kFloat32, false, kNumels);
  expect_exact(Dtype::kBfloat16, false, kNumels);
}

TEST_F(CudaDeviceRounds, AreExactThroughPinnedMemory) {
  expect_exact(Dtype::kFloat32, true, kNumels);
  expect_exact(Dtype::kBfloat16, true, kNumels);
}

TEST_F(CudaDeviceRounds, TellOfNaN) {
  CudaDevice device(runtime, 0);
  Rank rank(runtime, device, {100, 100}, Dtype::kBfloat16, 1);
  const float nan = std::nanf("");
  std::memcpy(rank.image.data() + 400, &nan, sizeof(nan));
  rank.tensors[1]->set(Bytes(rank.image.begin() + 400, rank.image.end()));
  const auto source = rank.source();
  source->acquire(stream->get());
  device.drain();
  EXPECT_THROW(device.poll(), NonFiniteError);
}

TEST_F(CudaDeviceRounds, WriteNothingAfterCancellation) {
  CudaDevice device(runtime, 0);
  Rank rank(runtime, device, {5000}, Dtype::kFloat32, 1);
  device.cancel_mixes();
  const auto sink = device.sink(*rank.inbox, rank.num_bytes());
  EXPECT_EQ(sink->consume(Bytes(rank.num_bytes())), rank.num_bytes());
  rank.mix(0.5);
  EXPECT_EQ(rank.get(), rank.image);
}

}  // namespace
}  // namespace crossover::testing
