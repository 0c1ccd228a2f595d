// Pack and mix on one core beside memcpy and a plain averaging loop. Argument: bytes of the tensor.
#include <benchmark/benchmark.h>

#include <cstring>
#include <span>
#include <vector>

#include "host/kernels.h"

namespace crossover {
namespace {

constexpr int64_t kLarge = 100'000'000;          // far beyond the caches
constexpr int64_t kWindow = int64_t{256} << 10;  // a window of a pipe

/// A tensor of ordinary values, and as many bytes again for what is made of it or mixed in.
struct Buffers {
  explicit Buffers(int64_t num_bytes)
      : x(num_bytes / sizeof(float), 1.25F), y(num_bytes / sizeof(float), 0.75F) {}
  int64_t numel() const { return static_cast<int64_t>(x.size()); }
  std::byte* message() { return reinterpret_cast<std::byte*>(y.data()); }

  std::vector<float> x;
  std::vector<float> y;
};

void memcpy_floats(benchmark::State& state) {
  Buffers buffers(state.range(0));
  for (auto _ : state) {
    std::memcpy(buffers.message(), buffers.x.data(), buffers.x.size() * sizeof(float));
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * 2);
}

void pack_floats(benchmark::State& state, Dtype wire) {
  Buffers buffers(state.range(0));
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        pack_elements(buffers.x.data(), Dtype::kFloat32, buffers.message(), wire, buffers.numel()));
  }
  const auto touched = static_cast<int64_t>(packed_bytes(wire, buffers.numel()));
  state.SetBytesProcessed(state.iterations() * (state.range(0) + touched));
}

void average_floats(benchmark::State& state) {
  Buffers buffers(state.range(0));
  float* __restrict x = buffers.x.data();
  const float* __restrict y = buffers.y.data();
  for (auto _ : state) {
    for (int64_t k = 0; k < buffers.numel(); ++k) x[k] = 0.5F * (x[k] + y[k]);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0) * 3);
}

void mix_floats(benchmark::State& state, Dtype wire, int num_messages) {
  Buffers buffers(state.range(0));
  std::vector<std::byte> message(packed_bytes(wire, buffers.numel()));
  pack_elements(buffers.y.data(), Dtype::kFloat32, message.data(), wire, buffers.numel());
  const std::vector<MixInput> inputs(static_cast<size_t>(num_messages),
                                     {message.data(), wire, 1.0 / (num_messages + 1)});
  for (auto _ : state) {
    mix_elements(buffers.x.data(), Dtype::kFloat32, wire, inputs, buffers.numel());
    benchmark::ClobberMemory();
  }
  const auto read = num_messages * static_cast<int64_t>(message.size());
  state.SetBytesProcessed(state.iterations() * (2 * state.range(0) + read));
}

BENCHMARK(memcpy_floats)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(pack_floats, float32, Dtype::kFloat32)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(pack_floats, bfloat16, Dtype::kBfloat16)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(pack_floats, float16, Dtype::kFloat16)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(pack_floats, int8, Dtype::kInt8Blocks)->Arg(kLarge)->Arg(kWindow);
BENCHMARK(average_floats)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(mix_floats, float32, Dtype::kFloat32, 1)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(mix_floats, bfloat16, Dtype::kBfloat16, 1)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(mix_floats, float16, Dtype::kFloat16, 1)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(mix_floats, int8, Dtype::kInt8Blocks, 1)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(mix_floats, float32_two, Dtype::kFloat32, 2)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(mix_floats, bfloat16_two, Dtype::kBfloat16, 2)->Arg(kLarge)->Arg(kWindow);
BENCHMARK_CAPTURE(mix_floats, int8_two, Dtype::kInt8Blocks, 2)->Arg(kLarge)->Arg(kWindow);

}  // namespace
}  // namespace crossover
