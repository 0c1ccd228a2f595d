// The CUDA kernels against the host's: every pair of types, awkward sizes, every alignment.
#include "cuda/kernels.h"

#include <algorithm>

#include "gpu_tensors.h"

namespace crossover::testing {
namespace {

const std::vector<Numels> kShapes = {
    {0},
    {1},
    {7},
    {kTileNumel - 1},
    {kTileNumel},
    {kTileNumel + 1},
    {3 * kTileNumel + 5},
    {10, 0, kTileNumel + 1, 1, 37, 2 * kTileNumel, 0},
};

class CudaKernels : public OnGpu {};

std::vector<Slice> slices_of(int64_t numel) {
  std::vector<Slice> slices{{0, numel}};
  if (numel > 2) slices.push_back({1, numel - 1});
  if (numel > kTileNumel) slices.push_back({numel / 2, numel / 2 + 1});
  return slices;
}

struct PackCase {
  Dtype from;
  Dtype to;
  size_t shift;      // of the tensors, in elements
  size_t out_shift;  // of the message, in elements
};

void expect_exact_pack(const std::shared_ptr<CudaRuntime>& runtime, StreamHandle stream,
                       const PackCase& pack, const Numels& numels, Values values) {
  Tensors tensors(runtime, stream, pack.from, numels, pack.shift, values, 1);
  for (const Slice& slice : slices_of(tensors.numel())) {
    Bytes wanted(static_cast<size_t>(slice.numel()) * dtype_bytes(pack.to));
    const int64_t found = pack_elements(tensors.image_at(slice.begin), pack.from, wanted.data(),
                                        pack.to, slice.numel());
    const GpuBytes out(*runtime, stream, Bytes(wanted.size()),
                       pack.out_shift * dtype_bytes(pack.to));
    const NonFiniteFound none;
    Bytes counter(sizeof(none));
    std::memcpy(counter.data(), &none, sizeof(none));
    const GpuBytes count(*runtime, stream, counter, 0);
    const BoundTensors bound = tensors.bind(slice, stream);
    PackLaunch launch;
    launch.table = bound.table;
    launch.tiles = bound.tiles;
    launch.slice = slice;
    launch.out = out.data();
    launch.found = reinterpret_cast<NonFiniteFound*>(count.data());
    launch.from = pack.from;
    launch.to = pack.to;
    runtime->launch(launch, stream);
    const std::string what = std::string(dtype_name(pack.from)) + " to " +
                             std::string(dtype_name(pack.to)) + ", shifts " +
                             std::to_string(pack.shift) + ", " + std::to_string(pack.out_shift);
    expect_same(pack.to, out.get(), wanted, what);
    NonFiniteFound told;
    std::memcpy(&told, count.get().data(), sizeof(told));
    EXPECT_EQ(told.count, static_cast<unsigned long long>(found)) << what;
  }
}

TEST_F(CudaKernels, PackAsTheHostDoes) {
  for (const Dtype from : kDtypes) {
    for (const Dtype to : kDtypes) {
      if (!can_pack(from, to)) continue;
      for (const Numels& numels : kShapes) {
        for (const Values values : {Values::kNormal, Values::kAnyBits}) {
          expect_exact_pack(runtime, stream->get(), {from, to, 0, 0}, numels, values);
          expect_exact_pack(runtime, stream->get(), {from, to, 1, 0}, numels, values);
          expect_exact_pack(runtime, stream->get(), {from, to, 0, 3}, numels, values);
        }
      }
    }
  }
}

struct MixCase {
  Dtype tensor;
  Dtype own;
  Dtype message;
  size_t shift;          // of the tensors, in elements
  size_t message_shift;  // of the messages, in elements
  uint64_t rounding_key = 0;
};

struct SentSlice {
  Slice slice;
  double weight;
  Bytes content;
};

/// Mixes run by run: between two borders of slices, the same messages hold all elements.
void mix_on_host(Tensors& tensors, const MixCase& mix, const std::vector<SentSlice>& sent) {
  std::vector<int64_t> borders;
  for (const SentSlice& message : sent) {
    borders.push_back(message.slice.begin);
    borders.push_back(message.slice.end);
  }
  std::sort(borders.begin(), borders.end());
  for (size_t k = 1; k < borders.size(); ++k) {
    std::vector<MixInput> inputs;
    for (const SentSlice& message : sent) {
      if (message.slice.begin > borders[k - 1] || message.slice.end < borders[k]) continue;
      const auto at = static_cast<size_t>(borders[k - 1] - message.slice.begin);
      inputs.push_back(
          {message.content.data() + at * dtype_bytes(mix.message), mix.message, message.weight});
    }
    if (inputs.empty()) continue;
    std::byte* x = tensors.image_at(borders[k - 1]);
    const int64_t numel = borders[k] - borders[k - 1];
    if (mix.rounding_key == 0) {
      mix_elements(x, mix.tensor, mix.own, inputs, numel);
      continue;
    }
    std::vector<float> sums(static_cast<size_t>(numel));
    pack_elements(x, mix.tensor, std::as_writable_bytes(std::span(sums)).data(), Dtype::kFloat32,
                  numel);
    mix_elements(sums.data(), Dtype::kFloat32, mix.own, inputs, numel);
    round_elements(sums, x, mix.tensor, mix.rounding_key, borders[k - 1]);
  }
}

void expect_exact_mix(const std::shared_ptr<CudaRuntime>& runtime, StreamHandle stream,
                      const MixCase& mix, const Numels& numels, const std::vector<Slice>& slices,
                      Values values) {
  Tensors tensors(runtime, stream, mix.tensor, numels, mix.shift, values, 1);
  std::vector<SentSlice> sent;
  std::vector<std::unique_ptr<GpuBytes>> memory;
  MixLaunch launch;
  launch.slice = slices[0];
  for (const Slice& slice : slices) {
    const double weight = sent.size() == 1 ? 1.0 : 0.3 + 0.1 * static_cast<double>(sent.size());
    sent.push_back({slice, weight, random_elements(mix.message, slice.numel(), values, 77)});
    memory.push_back(std::make_unique<GpuBytes>(*runtime, stream, sent.back().content,
                                                mix.message_shift * dtype_bytes(mix.message)));
    launch.messages[launch.num_messages++] = {memory.back()->data(), slice, weight};
    launch.slice.begin = std::min(launch.slice.begin, slice.begin);
    launch.slice.end = std::max(launch.slice.end, slice.end);
  }
  const BoundTensors bound = tensors.bind(launch.slice, stream);
  launch.table = bound.table;
  launch.tiles = bound.tiles;
  launch.tensor = mix.tensor;
  launch.own = mix.own;
  launch.message = mix.message;
  launch.rounding_key = mix.rounding_key;
  runtime->launch(launch, stream);
  mix_on_host(tensors, mix, sent);
  const std::string what = std::string(dtype_name(mix.tensor)) + " sent as " +
                           std::string(dtype_name(mix.own)) + ", messages of " +
                           std::string(dtype_name(mix.message)) + ", shifts " +
                           std::to_string(mix.shift) + ", " + std::to_string(mix.message_shift);
  expect_same(mix.tensor, tensors.get(), tensors.image, what);
}

template <class Check>
void for_each_mix(Check check) {
  for (const Dtype tensor : kDtypes) {
    for (const Dtype own : kDtypes) {
      for (const Dtype message : kDtypes) {
        if (can_mix(tensor, own, message)) check(tensor, own, message);
      }
    }
  }
}

TEST_F(CudaKernels, MixOneMessageAsTheHostDoes) {
  for_each_mix([&](Dtype tensor, Dtype own, Dtype message) {
    for (const Numels& numels : kShapes) {
      const Slice whole{0, TileLayout(numels).numel()};
      for (const Values values : {Values::kNormal, Values::kAnyBits}) {
        const auto check = [&](size_t shift, size_t message_shift) {
          expect_exact_mix(runtime, stream->get(), {tensor, own, message, shift, message_shift},
                           numels, {whole}, values);
        };
        check(0, 0);
        check(1, 0);
        check(0, 3);
      }
    }
  });
}

TEST_F(CudaKernels, MixSeveralMessagesInTheirOrderAsTheHostDoes) {
  const Numels numels = kShapes.back();
  const int64_t all = TileLayout(numels).numel();
  for_each_mix([&](Dtype tensor, Dtype own, Dtype message) {
    const MixCase mix{tensor, own, message, 0, 0};
    const auto check = [&](const std::vector<Slice>& slices) {
      expect_exact_mix(runtime, stream->get(), mix, numels, slices, Values::kNormal);
    };
    check({{0, all}, {0, all}, {0, all}});
    check({{0, all / 2}, {all / 2, all}});
    check({{0, all}, {5, 9}, {all - kTileNumel, all}});
    check({{3, 40}, {all - 50, all - 1}});
  });
}

TEST_F(CudaKernels, RoundSumsIntoTwoByteElementsAsTheHostDoes) {
  for (const Dtype dtype : {Dtype::kFloat16, Dtype::kBfloat16}) {
    for (const Numels& numels : kShapes) {
      const int64_t all = TileLayout(numels).numel();
      for (const size_t shift : {0, 1}) {
        const MixCase mix{dtype, dtype, dtype, shift, 0, 0x123456789abcdef1};
        expect_exact_mix(runtime, stream->get(), mix, numels, {{0, all}}, Values::kNormal);
        expect_exact_mix(runtime, stream->get(), mix, numels, {{0, all}, {all / 2, all}},
                         Values::kNormal);
      }
    }
  }
}

TEST_F(CudaKernels, MixAsManyMessagesAsTheyTake) {
  const Numels numels{kTileNumel + 3};
  const std::vector<Slice> slices(kMaxMixMessages, {0, kTileNumel + 3});
  expect_exact_mix(runtime, stream->get(),
                   {Dtype::kFloat32, Dtype::kFloat32, Dtype::kFloat32, 0, 0}, numels, slices,
                   Values::kNormal);
}

TEST_F(CudaKernels, ReplaceWhatMessagesHoldAndNothingElse) {
  const Numels numels{5, kTileNumel + 3, 700};
  Tensors tensors(runtime, stream->get(), Dtype::kFloat32, numels, 0, Values::kNormal, 1);
  const int64_t all = tensors.numel();
  const std::vector<Slice> slices{{3, 40}, {40, all - 1}};
  std::vector<std::unique_ptr<GpuBytes>> memory;
  MixLaunch launch;
  launch.slice = {3, all - 1};
  launch.replaces = true;
  for (const Slice& slice : slices) {
    const Bytes content = random_elements(Dtype::kFloat32, slice.numel(), Values::kNormal, 77);
    memory.push_back(std::make_unique<GpuBytes>(*runtime, stream->get(), content, 0));
    launch.messages[launch.num_messages++] = {memory.back()->data(), slice, 1.0};
    for (int64_t k = slice.begin; k < slice.end; ++k) {
      std::memcpy(tensors.image_at(k), content.data() + 4 * (k - slice.begin), 4);
    }
  }
  const BoundTensors bound = tensors.bind(launch.slice, stream->get());
  launch.table = bound.table;
  launch.tiles = bound.tiles;
  runtime->launch(launch, stream->get());
  expect_same(Dtype::kFloat32, tensors.get(), tensors.image, "replaced");
}

TEST_F(CudaKernels, WriteNothingOnceCancelled) {
  const Numels numels{kTileNumel + 3};
  Tensors tensors(runtime, stream->get(), Dtype::kFloat32, numels, 0, Values::kNormal, 1);
  const Slice whole{0, tensors.numel()};
  const GpuBytes message(*runtime, stream->get(), Bytes(static_cast<size_t>(whole.end) * 4), 0);
  const GpuBytes flag(*runtime, stream->get(), Bytes(4, std::byte{1}), 0);
  const BoundTensors bound = tensors.bind(whole, stream->get());
  MixLaunch launch;
  launch.table = bound.table;
  launch.tiles = bound.tiles;
  launch.slice = whole;
  launch.cancelled = reinterpret_cast<const uint32_t*>(flag.data());
  launch.num_messages = 1;
  launch.messages[0] = {message.data(), whole, 0.5};
  runtime->launch(launch, stream->get());
  expect_same(Dtype::kFloat32, tensors.get(), tensors.image, "cancelled");
}

}  // namespace
}  // namespace crossover::testing
