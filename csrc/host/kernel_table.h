// The kernels of one instruction set, as a table that kernels.cpp chooses from. Private to host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host/kernels.h"

namespace crossover {

inline constexpr size_t kNumDtypes = 5;

/// Indexed by the values of Dtype. Contracts: pack_elements, mix_elements and round_elements in
/// kernels.h. Null where a tensor would hold kInt8Blocks.
struct KernelTable {
  using Pack = int64_t (*)(const std::byte* x, std::byte* out, int64_t numel);
  using Mix = void (*)(std::byte* x, const MixInput* inputs, size_t num_inputs, int64_t numel);
  using Round = void (*)(const float* x, std::byte* out, int64_t numel, uint64_t key,
                         int64_t first);
  Pack pack[kNumDtypes][kNumDtypes];  // [from][to]
  Mix mix[kNumDtypes][kNumDtypes];    // [tensor's][own]
  Round round[kNumDtypes];            // 2-byte types
};

const KernelTable& portable_kernels();
const KernelTable& avx2_kernels();    // x86-64 only
const KernelTable& avx512_kernels();  // x86-64 only

}  // namespace crossover
