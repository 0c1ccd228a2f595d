#include "host/kernels.h"

#include "core/error.h"
#include "host/kernel_table.h"

namespace crossover {
namespace {

#if defined(CROSSOVER_X86_64)
SimdLevel detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 &&
                    __builtin_cpu_supports("f16c") != 0;
  const bool avx512 =
      __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
      __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
  if (avx2 && avx512) return SimdLevel::kAvx512;
  return avx2 ? SimdLevel::kAvx2 : SimdLevel::kPortable;
}

const KernelTable& kernels(SimdLevel level) {
  check(level <= simd_level(), "the CPU lacks the instruction set asked for");
  switch (level) {
    case SimdLevel::kAvx512:
      return avx512_kernels();
    case SimdLevel::kAvx2:
      return avx2_kernels();
    case SimdLevel::kPortable:
      break;
  }
  return portable_kernels();
}
#else
SimdLevel detect() { return SimdLevel::kPortable; }

const KernelTable& kernels(SimdLevel level) {
  check(level == SimdLevel::kPortable, "the CPU lacks the instruction set asked for");
  return portable_kernels();
}
#endif

size_t index(Dtype dtype) {
  const auto value = static_cast<size_t>(dtype);
  check(value < kNumDtypes, "unknown dtype");
  return value;
}

}  // namespace

SimdLevel simd_level() {
  static const SimdLevel level = detect();
  return level;
}

int64_t pack_elements(const void* x, Dtype from, std::byte* out, Dtype to, int64_t numel,
                      SimdLevel level) {
  const auto pack = kernels(level).pack[index(from)][index(to)];
  check(pack != nullptr, "blocks are packed from elements, or unpacked into them");
  return pack(static_cast<const std::byte*>(x), out, numel);
}

void mix_elements(void* x, Dtype dtype, Dtype own, std::span<const MixInput> inputs, int64_t numel,
                  SimdLevel level) {
  for (const MixInput& input : inputs) index(input.dtype);
  const auto mix = kernels(level).mix[index(dtype)][index(own)];
  check(mix != nullptr, "blocks are mixed into elements");
  mix(static_cast<std::byte*>(x), inputs.data(), inputs.size(), numel);
}

void round_elements(std::span<const float> x, std::byte* out, Dtype dtype, uint64_t key,
                    int64_t first, SimdLevel level) {
  const auto round = kernels(level).round[index(dtype)];
  check(round != nullptr, "2-byte elements are rounded stochastically");
  round(x.data(), out, static_cast<int64_t>(x.size()), key, first);
}

}  // namespace crossover
