#include "cuda/cuda_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "core/error.h"
#include "cuda_world.h"

namespace crossover {
namespace {

const std::vector<int64_t> kNumels{5, 0, 4097, 1, 4096, 37, 9000};

std::shared_ptr<FakeCuda> fake() { return std::make_shared<FakeCuda>(); }

template <class Error, class Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of the wanted type was thrown";
  return {};
}

/// Moves the message of `from` to the inbox of `to` on a stream of the transport's.
void transfer_resident(FakeCuda& gpu, StreamHandle stream, GpuRank& from, GpuRank& to) {
  const std::byte* out = from.source->acquire(stream);
  std::byte* in = to.sink->acquire(stream);
  gpu.put(stream, "transfer", [=, n = from.num_bytes()] { std::memcpy(in, out, n); });
  from.source->release(stream);
  to.sink->release(stream);
}

/// Moves it through windows of the host, while the GPU does some of its work now and then.
void transfer_staged(FakeCuda& gpu, std::mt19937& random, GpuRank& from, GpuRank& to) {
  size_t sent = 0;
  while (sent < from.num_bytes()) {
    gpu.run_some(random, static_cast<int>(random() % 8));
    Bytes window(1 + random() % (size_t{300} << 10));
    const size_t produced = from.source->produce(window);
    std::span<const std::byte> left(window.data(), produced);
    while (!left.empty()) {
      left = left.subspan(to.sink->consume(left));
      gpu.run_some(random, static_cast<int>(random() % 8));
    }
    sent += produced;
  }
}

enum class Path { kResident, kStaged };

/// Two ranks train and mix; the GPU runs its streams in an order drawn from `seed`.
void expect_exact_rounds(Path path, Dtype wire, const std::vector<int64_t>& numels, uint32_t seed) {
  constexpr int kRounds = 4;
  const auto gpu = fake();
  std::mt19937 random(seed);
  GpuRank a(gpu, numels, wire, 1);
  GpuRank b(gpu, numels, wire, 2);
  const StreamHandle links[] = {gpu->create_stream(), gpu->create_stream()};
  std::vector<Bytes> expected{a.x.bytes(), b.x.bytes()};
  expected_after({&a, &b}, expected, wire, kRounds, 0.5);
  for (int round = 0; round < kRounds; ++round) {
    for (GpuRank* rank : {&a, &b}) {
      rank->put_training(round);
      rank->post();
    }
    if (path == Path::kResident) {
      transfer_resident(*gpu, links[0], a, b);
      transfer_resident(*gpu, links[1], b, a);
      gpu->run_some(random, static_cast<int>(random() % 40));
    } else {
      transfer_staged(*gpu, random, a, b);
      transfer_staged(*gpu, random, b, a);
    }
    for (GpuRank* rank : {&a, &b}) rank->mix(0.5);
  }
  gpu->run_some(random, 1 << 20);
  EXPECT_EQ(a.x.bytes(), expected[0]) << "seed " << seed;
  EXPECT_EQ(b.x.bytes(), expected[1]) << "seed " << seed;
}

TEST(CudaDevice, MixesResidentMessagesExactlyInWhateverOrderStreamsRun) {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    const Dtype wire = seed % 2 == 0 ? Dtype::kFloat32 : Dtype::kBfloat16;
    expect_exact_rounds(Path::kResident, wire, kNumels, seed);
  }
}

TEST(CudaDevice, MixesStagedMessagesExactlyInWhateverOrderStreamsRun) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const Dtype wire = seed % 2 == 0 ? Dtype::kFloat32 : Dtype::kBfloat16;
    expect_exact_rounds(Path::kStaged, wire, kNumels, seed);
  }
}

TEST(CudaDevice, StagesMessagesOfManyChunks) {
  const auto numel = static_cast<int64_t>(kStagingChunkBytes / 4);
  expect_exact_rounds(Path::kStaged, Dtype::kFloat32, {numel, 3, 3 * numel}, 7);
  expect_exact_rounds(Path::kStaged, Dtype::kBfloat16, {4 * numel}, 8);
}

TEST(CudaDevice, NeverPacksBeforeTheFenceIsReached) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.put_training(0);
  rank.post();
  while (gpu->step(rank.stream) && gpu->done().back() != "train") gpu->run();
  const auto& done = gpu->done();
  gpu->run();
  const auto trained = std::find(done.begin(), done.end(), "train");
  const auto packed = std::find(done.begin(), done.end(), "pack");
  ASSERT_NE(packed, done.end());
  EXPECT_LT(trained, packed);
}

TEST(CudaDevice, MixesOnTheTrainingStream) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.post();
  const StreamHandle link = gpu->create_stream();
  transfer_resident(*gpu, link, rank, rank);
  rank.mix(0.5);
  gpu->put(rank.stream, "next forward", [] {});
  gpu->run();
  EXPECT_EQ(gpu->done().back(), "next forward");
}

TEST(CudaDevice, NeitherWaitsNorAllocatesInALaterStep) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kBfloat16, 1);
  const StreamHandle link = gpu->create_stream();
  const std::vector<std::string> forbidden{"cudaMalloc",
                                           "cudaHostAlloc",
                                           "cudaStreamCreateWithPriority",
                                           "cudaEventCreateWithFlags",
                                           "cudaStreamSynchronize",
                                           "cudaEventSynchronize",
                                           "cudaPointerGetAttributes"};
  std::vector<int> before;
  for (int round = 0; round < 6; ++round) {
    rank.put_training(round);
    rank.post();
    transfer_resident(*gpu, link, rank, rank);
    rank.mix(0.5);
    gpu->run();
    rank.device.poll();
    if (round != 1) continue;
    for (const std::string& call : forbidden) before.push_back(gpu->calls(call));
  }
  for (size_t i = 0; i < forbidden.size(); ++i) {
    EXPECT_EQ(gpu->calls(forbidden[i]), before[i]) << forbidden[i];
  }
}

TEST(CudaDevice, LaunchesOncePerSegmentWhateverTheNumberOfTensors) {
  const auto gpu = fake();
  GpuRank rank(gpu, std::vector<int64_t>(161, 10), Dtype::kFloat32, 1);
  rank.post();
  transfer_resident(*gpu, gpu->create_stream(), rank, rank);
  rank.mix(0.5);
  EXPECT_EQ(gpu->calls("pack"), 1);
  EXPECT_EQ(gpu->calls("mix"), 1);
}

TEST(CudaDevice, FollowsTensorsThatMove) {
  const auto gpu = fake();
  GpuRank rank(gpu, {100, 7}, Dtype::kFloat32, 1);
  const GpuTensors moved(gpu, Dtype::kFloat32, {100, 7}, 2);
  const StreamHandle other_stream = gpu->training_stream();
  for (const TensorList& list : {rank.list(), moved.list(rank.notes.get(), other_stream),
                                 rank.list(), moved.list(rank.notes.get(), rank.stream)}) {
    const auto source = rank.device.source(
        {list, rank.x.whole(), Dtype::kFloat32, NonFinitePolicy::kRaise, "", nullptr});
    const StreamHandle link = gpu->create_stream();
    Bytes sent(rank.num_bytes());
    const std::byte* at = source->acquire(link);
    gpu->put(link, "transfer", [&sent, at] { std::memcpy(sent.data(), at, sent.size()); });
    source->release(link);
    const WeightedMessage none{rank.inbox->data(), rank.x.whole(), Dtype::kFloat32, 0.0,
                               rank.inbox.get()};
    std::memset(rank.inbox->data(), 0, rank.num_bytes());
    rank.device.mix(list, Dtype::kFloat32, {&none, 1});
    gpu->run();
    Bytes wanted;
    for (size_t i = 0; i < 2; ++i) {
      const auto* x = static_cast<const std::byte*>(list.addresses[i]);
      wanted.insert(wanted.end(), x, x + list.numels[i] * 4);
    }
    EXPECT_EQ(sent, wanted);
  }
}

TEST(CudaDevice, WakesTheProgressThreadOncePerStalledCopy) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  int woken = 0;
  rank.device.set_waker([&] { ++woken; });
  rank.post();
  Bytes window(rank.num_bytes());
  EXPECT_EQ(rank.source->produce(window), 0U);
  EXPECT_EQ(rank.source->produce(window), 0U);
  gpu->run();
  EXPECT_EQ(woken, 1);
  EXPECT_EQ(rank.source->produce(window), window.size());
}

TEST(CudaDevice, IsSilentAfterItsWakerIsTaken) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.device.set_waker([] { FAIL() << "woken"; });
  rank.post();
  Bytes window(rank.num_bytes());
  EXPECT_EQ(rank.source->produce(window), 0U);
  rank.device.set_waker(nullptr);
  gpu->run();
}

TEST(CudaDevice, ProducesWholeElementsOnly) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.post();
  Bytes window(7);
  rank.source->produce(window);
  gpu->run();
  EXPECT_EQ(rank.source->produce(window), 4U);
}

TEST(CudaDevice, SendsNothingOfAStagedMessageThatHoldsNaN) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kBfloat16, 1);
  rank.x.floats(4)[9] = std::numeric_limits<float>::quiet_NaN();
  rank.x.floats(6)[1] = std::numeric_limits<float>::infinity();
  rank.post();
  Bytes window(64);
  rank.source->produce(window);
  gpu->run();
  const std::string said = message_of<NonFiniteError>([&] { rank.source->produce(window); });
  EXPECT_EQ(
      said,
      "segment 3 'fc': holds 2 non-finite values (NaN, infinity, or too large for bfloat16 on "
      "the wire), first in tensor 4");
}

TEST(CudaDevice, TellsOfNaNInAResidentMessageWhenPolled) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.x.floats(0)[0] = std::numeric_limits<float>::quiet_NaN();
  rank.post();
  rank.source->acquire(gpu->create_stream());
  rank.device.poll();
  gpu->run();
  EXPECT_THROW(rank.device.poll(), NonFiniteError);
  rank.device.poll();
}

TEST(CudaDevice, IgnoresNaNWhenAsked) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.x.floats(0)[0] = std::numeric_limits<float>::quiet_NaN();
  rank.post(NonFinitePolicy::kIgnore);
  Bytes window(rank.num_bytes());
  rank.source->produce(window);
  gpu->run();
  EXPECT_EQ(rank.source->produce(window), window.size());
}

TEST(CudaDevice, MixesNothingOnceCancelled) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.post();
  transfer_resident(*gpu, gpu->create_stream(), rank, rank);
  const Bytes before = rank.x.bytes();
  rank.mix(0.5);
  gpu->run_host_functions_at_once();
  rank.device.cancel_mixes();
  gpu->run();
  EXPECT_EQ(rank.x.bytes(), before);
}

TEST(CudaDevice, RefusesCaptureAtPostAndWait) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.post();
  transfer_resident(*gpu, gpu->create_stream(), rank, rank);
  gpu->set_capturing(rank.stream, true);
  EXPECT_NE(message_of<InvalidArgument>([&] { rank.device.fence(rank.stream); }).find("CUDA graph"),
            std::string::npos);
  EXPECT_THROW(rank.mix(0.5), InvalidArgument);
  EXPECT_EQ(gpu->calls("mix"), 0);
  gpu->set_capturing(rank.stream, false);
  rank.mix(0.5);
}

TEST(CudaDevice, OptsOutOfOthersCapturesOnItsProgressThread) {
  const auto gpu = fake();
  CudaDevice device(gpu, 0);
  device.poll();
  device.poll();
  EXPECT_EQ(gpu->calls("cudaThreadExchangeStreamCaptureMode"), 1);
}

TEST(CudaDevice, NamesTheTensorThatLiesElsewhere) {
  const auto gpu = fake();
  GpuRank rank(gpu, {10, 10}, Dtype::kFloat32, 1);
  gpu->set_place(1);
  const GpuTensors elsewhere(gpu, Dtype::kFloat32, {10}, 1);
  std::vector<float> host(10);
  const auto post = [&](void* second) {
    void* const addresses[] = {rank.x.address(0), second};
    rank.device.source({{Dtype::kFloat32, addresses, rank.x.numels(), rank.notes.get()},
                        rank.x.whole(),
                        Dtype::kFloat32,
                        NonFinitePolicy::kRaise,
                        "",
                        nullptr});
  };
  EXPECT_EQ(message_of<InvalidArgument>([&] { post(elsewhere.address(0)); }),
            "tensor 1 of the segment: expected it on cuda:0, the one device of this process, got "
            "cuda:1");
  EXPECT_EQ(message_of<InvalidArgument>([&] { post(host.data()); }),
            "tensor 1 of the segment: expected it on cuda:0, the one device of this process, got "
            "host memory");
}

TEST(CudaDevice, RefusesAnOrdinalThatCudaDoesNotShow) {
  EXPECT_EQ(message_of<InvalidArgument>([] { CudaDevice(fake(), 2); }),
            "cuda:2: expected one of the 2 devices that CUDA shows");
}

TEST(CudaDevice, LeavesTheCallersDeviceAsItWas) {
  const auto gpu = fake();
  gpu->set_current_device(1);
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  rank.post();
  transfer_resident(*gpu, gpu->create_stream(), rank, rank);
  rank.mix(0.5);
  EXPECT_EQ(gpu->current_device(), 1);
}

TEST(CudaDevice, PassesOnWhichCallFailed) {
  for (const std::string call : {"cudaStreamWaitEvent", "pack", "cudaEventRecord"}) {
    const auto gpu = fake();
    GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
    gpu->fail_next(call);
    EXPECT_EQ(message_of<DeviceError>([&] { rank.post(); }), "CUDA: " + call + " failed");
  }
}

TEST(CudaDevice, RefusesWhatItHasNoKernelFor) {
  const auto gpu = fake();
  GpuRank rank(gpu, kNumels, Dtype::kFloat32, 1);
  WeightedMessage wrong{rank.inbox->data(), rank.x.whole(), Dtype::kBfloat16, 0.5,
                        rank.inbox.get()};
  EXPECT_THROW(rank.device.mix(rank.list(), Dtype::kFloat32, {&wrong, 1}), std::logic_error);
  wrong.dtype = Dtype::kFloat32;
  const std::vector<WeightedMessage> many(kMaxMixMessages + 1, wrong);
  EXPECT_THROW(rank.device.mix(rank.list(), Dtype::kFloat32, many), std::logic_error);
}

TEST(CudaDevice, WorksOnAWideCopyThroughSeveralPhases) {
  for (const Dtype wire : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16}) {
    const auto gpu = fake();
    GpuRank rank(gpu, kNumels, wire, 1);
    const auto numel = rank.x.total();
    const auto scratch = rank.device.allocate(rank.num_bytes());
    const auto work = rank.device.allocate(static_cast<size_t>(numel) * 4);
    rank.put_training(0);
    rank.device.widen({rank.list(), rank.x.whole(), wire, NonFinitePolicy::kRaise, "",
                       rank.device.fence(rank.stream)},
                      *scratch, *work);
    gpu->run();
    const Bytes x = rank.x.bytes();
    Bytes packed(rank.num_bytes());
    Bytes wanted(static_cast<size_t>(numel) * 4);
    pack_elements(x.data(), Dtype::kFloat32, packed.data(), wire, numel);
    pack_elements(packed.data(), wire, wanted.data(), Dtype::kFloat32, numel);
    EXPECT_EQ(std::memcmp(work->data(), wanted.data(), wanted.size()), 0) << dtype_name(wire);
  }
}

}  // namespace
}  // namespace crossover
