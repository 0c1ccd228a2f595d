// Work that must not overtake other work, with the stream it waits for held up.
#include <gtest/gtest.h>

#include <algorithm>

#include "cuda_world.h"

namespace crossover {
namespace {

std::ptrdiff_t times_done(const FakeCuda& gpu, const std::string& name) {
  return std::count(gpu.done().begin(), gpu.done().end(), name);
}

void mix_from(GpuRank& rank, DeviceBuffer& buffer, Dtype type) {
  const WeightedMessage message{buffer.data(), rank.x.whole(), type, 0.5, &buffer};
  rank.device.mix(rank.list(), rank.wire, {&message, 1});
}

/// The rank's inbox is full of zeros and its mix is enqueued on the held training stream.
void enqueue_held_mix(GpuRank& rank) {
  std::memset(rank.inbox->data(), 0, rank.num_bytes());
  rank.gpu->hold(rank.stream);
  mix_from(rank, *rank.inbox, rank.wire);
}

TEST(CudaOrder, CopiesIntoAnInboxOnlyAfterTheMixOfItsLastMessage) {
  const auto gpu = std::make_shared<FakeCuda>();
  GpuRank rank(gpu, {1000, 5}, Dtype::kFloat32, 1);
  enqueue_held_mix(rank);
  const auto sink = rank.device.sink(*rank.inbox, rank.num_bytes());
  const Bytes message(rank.num_bytes(), std::byte{0x3f});
  EXPECT_EQ(sink->consume(message), message.size());
  gpu->run();
  EXPECT_EQ(rank.inbox->data()[0], std::byte{0});
  gpu->let_go(rank.stream);
  gpu->run();
  EXPECT_EQ(std::memcmp(rank.inbox->data(), message.data(), message.size()), 0);
}

TEST(CudaOrder, TakesNoMoreThanTwoChunksWhileTheInboxIsInUse) {
  const auto gpu = std::make_shared<FakeCuda>();
  const auto numel = static_cast<int64_t>(5 * kStagingChunkBytes / 4 + 1);
  GpuRank rank(gpu, {numel}, Dtype::kFloat32, 1);
  int woken = 0;
  rank.device.set_waker([&] { ++woken; });
  enqueue_held_mix(rank);
  const auto sink = rank.device.sink(*rank.inbox, rank.num_bytes());
  Bytes message(rank.num_bytes());
  for (size_t k = 0; k < message.size(); ++k) message[k] = static_cast<std::byte>(k / 4096 % 251);
  std::span<const std::byte> left(message);
  left = left.subspan(sink->consume(left));
  EXPECT_EQ(message.size() - left.size(), 2 * kStagingChunkBytes);
  EXPECT_EQ(sink->consume(left), 0U);
  EXPECT_EQ(woken, 0);
  gpu->let_go(rank.stream);
  while (!left.empty()) {
    gpu->run();
    left = left.subspan(sink->consume(left));
  }
  gpu->run();
  EXPECT_GT(woken, 0);
  EXPECT_EQ(std::memcmp(rank.inbox->data(), message.data(), message.size()), 0);
}

TEST(CudaOrder, WidensOnlyAfterTheMixOfTheLastResult) {
  const auto gpu = std::make_shared<FakeCuda>();
  GpuRank rank(gpu, {1000, 5}, Dtype::kBfloat16, 1);
  const auto scratch = rank.device.allocate(rank.num_bytes());
  const auto work = rank.device.allocate(static_cast<size_t>(rank.x.total()) * 4);
  const PackSpec spec{rank.list(), rank.x.whole(), rank.wire, NonFinitePolicy::kRaise, ""};
  rank.device.widen(spec, *scratch, *work);
  gpu->hold(rank.stream);
  mix_from(rank, *work, Dtype::kFloat32);
  rank.device.widen(spec, *scratch, *work);
  gpu->run();
  EXPECT_EQ(times_done(*gpu, "pack"), 2);
  gpu->let_go(rank.stream);
  gpu->run();
  EXPECT_EQ(times_done(*gpu, "pack"), 4);
}

TEST(CudaOrder, MixesAWidenedCopyOnlyOnceItIsThere) {
  const auto gpu = std::make_shared<FakeCuda>();
  GpuRank rank(gpu, {1000, 5}, Dtype::kBfloat16, 1);
  const auto scratch = rank.device.allocate(rank.num_bytes());
  const auto work = rank.device.allocate(static_cast<size_t>(rank.x.total()) * 4);
  const StreamHandle late = gpu->training_stream();
  gpu->hold(late);
  rank.device.widen({rank.list(), rank.x.whole(), rank.wire, NonFinitePolicy::kRaise, "",
                     rank.device.fence(late)},
                    *scratch, *work);
  mix_from(rank, *work, Dtype::kFloat32);
  gpu->run();
  EXPECT_EQ(times_done(*gpu, "mix"), 0);
  gpu->let_go(late);
  gpu->run();
  EXPECT_EQ(times_done(*gpu, "mix"), 1);
}

}  // namespace
}  // namespace crossover
