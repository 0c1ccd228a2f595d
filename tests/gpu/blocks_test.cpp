// The CUDA kernels of the int8 wire against the host's.
#include <algorithm>

#include "cuda/kernels.h"
#include "gpu_tensors.h"

namespace crossover::testing {
namespace {

constexpr Dtype kBlocks = Dtype::kInt8Blocks;
constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16};

const std::vector<Numels> kShapes = {
    {0},
    {1},
    {128},
    {kTileNumel + 1},
    {10, 0, kTileNumel + 1, 1, 37, 2 * kTileNumel, 0},  // blocks that several tensors share
};

class CudaBlocks : public OnGpu {};

std::vector<Slice> slices_of(int64_t numel) {
  std::vector<Slice> slices{{0, numel}};
  if (numel > 128) slices.push_back({128, numel});
  if (numel > kTileNumel) slices.push_back({256, kTileNumel});
  return slices;
}

Dtype sum_of(Dtype tensor) { return tensor == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32; }

/// `out_shift`: bytes of the message after an aligned address.
void expect_exact_pack(const std::shared_ptr<CudaRuntime>& runtime, StreamHandle stream, Dtype from,
                       const Numels& numels, size_t shift, size_t out_shift, Values values) {
  Tensors tensors(runtime, stream, from, numels, shift, values, 1);
  for (const Slice& slice : slices_of(tensors.numel())) {
    Bytes wanted(packed_bytes(kBlocks, slice.numel()));
    const int64_t found =
        pack_elements(tensors.image_at(slice.begin), from, wanted.data(), kBlocks, slice.numel());
    const GpuBytes out(*runtime, stream, Bytes(wanted.size()), out_shift);
    const NonFiniteFound none;
    Bytes counter(sizeof(none));
    std::memcpy(counter.data(), &none, sizeof(none));
    const GpuBytes count(*runtime, stream, counter, 0);
    PackLaunch launch;
    launch.table = tensors.bind(slice, stream).table;
    launch.tiles = segment_tiles(slice);
    launch.slice = slice;
    launch.out = out.data();
    launch.found = reinterpret_cast<NonFiniteFound*>(count.data());
    launch.from = from;
    launch.to = kBlocks;
    runtime->launch(launch, stream);
    ASSERT_EQ(out.get(), wanted) << dtype_name(from) << ", shifts " << shift << ", " << out_shift;
    NonFiniteFound told;
    std::memcpy(&told, count.get().data(), sizeof(told));
    ASSERT_EQ(told.count, static_cast<unsigned long long>(found));
  }
}

TEST_F(CudaBlocks, PackAsTheHostDoes) {
  for (const Dtype from : kDtypes) {
    for (const Numels& numels : kShapes) {
      for (const Values values : {Values::kNormal, Values::kAnyBits}) {
        expect_exact_pack(runtime, stream->get(), from, numels, 0, 0, values);
        expect_exact_pack(runtime, stream->get(), from, numels, 1, 0, values);
        expect_exact_pack(runtime, stream->get(), from, numels, 0, 3, values);
      }
    }
  }
}

TEST_F(CudaBlocks, UnpackAsTheHostDoes) {
  for (const Dtype to : {Dtype::kFloat32, Dtype::kFloat64}) {
    for (const int64_t numel : {int64_t{1}, int64_t{128}, kTileNumel + 130}) {
      const Slice whole{0, numel};
      const Bytes message = random_elements(kBlocks, numel, Values::kNormal, 3);
      Bytes wanted(static_cast<size_t>(numel) * dtype_bytes(to));
      pack_elements(message.data(), kBlocks, wanted.data(), to, numel);
      const GpuBytes in(*runtime, stream->get(), message, 0);
      const GpuBytes out(*runtime, stream->get(), Bytes(wanted.size()), 0);
      PackLaunch launch;
      launch.table.only = {in.data(), 0, numel, 0};
      launch.tiles = segment_tiles(whole);
      launch.slice = whole;
      launch.out = out.data();
      launch.from = kBlocks;
      launch.to = to;
      runtime->launch(launch, stream->get());
      EXPECT_EQ(out.get(), wanted) << dtype_name(to) << ", " << numel << " elements";
    }
  }
}

struct MixCase {
  Dtype tensor;
  Dtype message;
  size_t shift;          // of the tensors, in elements
  size_t message_shift;  // of the messages, in bytes
};

/// All slices are equal.
void expect_exact_mix(const std::shared_ptr<CudaRuntime>& runtime, StreamHandle stream,
                      const MixCase& mix, const Numels& numels, const std::vector<Slice>& slices) {
  Tensors tensors(runtime, stream, mix.tensor, numels, mix.shift, Values::kNormal, 1);
  std::vector<std::unique_ptr<GpuBytes>> memory;
  std::vector<Bytes> contents;
  std::vector<MixInput> inputs;
  MixLaunch launch;
  for (const Slice& slice : slices) {
    const auto seed = static_cast<uint32_t>(70 + contents.size());
    contents.push_back(random_elements(mix.message, slice.numel(), Values::kNormal, seed));
    memory.push_back(
        std::make_unique<GpuBytes>(*runtime, stream, contents.back(), mix.message_shift));
    const double weight = contents.size() == 2 ? 1.0 : 0.3;
    launch.messages[launch.num_messages++] = {memory.back()->data(), slice, weight};
  }
  for (int j = 0; j < launch.num_messages; ++j) {
    inputs.push_back({contents[j].data(), mix.message, launch.messages[j].weight});
  }
  launch.table = tensors.bind(slices[0], stream).table;
  launch.tiles = segment_tiles(slices[0]);
  launch.slice = slices[0];
  launch.tensor = mix.tensor;
  launch.own = kBlocks;
  launch.message = mix.message;
  runtime->launch(launch, stream);
  mix_elements(tensors.image_at(slices[0].begin), mix.tensor, kBlocks, inputs, slices[0].numel());
  expect_same(mix.tensor, tensors.get(), tensors.image,
              std::string(dtype_name(mix.tensor)) + ", messages of " +
                  std::string(dtype_name(mix.message)));
}

TEST_F(CudaBlocks, MixAsTheHostDoes) {
  for (const Dtype tensor : kDtypes) {
    for (const Dtype message : {kBlocks, sum_of(tensor)}) {
      for (const Numels& numels : kShapes) {
        for (const Slice& slice : slices_of(TileLayout(numels).numel())) {
          const auto check = [&](size_t shift, size_t message_shift) {
            expect_exact_mix(runtime, stream->get(), {tensor, message, shift, message_shift},
                             numels, {slice});
            expect_exact_mix(runtime, stream->get(), {tensor, message, shift, message_shift},
                             numels, {slice, slice, slice});
          };
          check(0, 0);
          check(1, 0);
          check(0, dtype_bytes(message));
        }
      }
    }
  }
}

}  // namespace
}  // namespace crossover::testing
