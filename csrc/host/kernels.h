// Element loops of the host device: cast, count of non-finite values, weighted difference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/dtype.h"

namespace crossover {

/// Instruction sets the kernels are compiled for; the best one the CPU has is taken.
enum class SimdLevel { kPortable, kAvx2 /* with FMA and F16C */, kAvx512 };

/// What this CPU has, detected once.
SimdLevel simd_level();

/// One message's elements, aligned with the tensor's.
struct MixInput {
  const std::byte* data = nullptr;
  Dtype dtype = Dtype::kFloat32;
  double weight = 0.0;
};

/// out[k] = Q(x[k]) for k < numel: cast from `from` to `to`, rounded once, to nearest even; a NaN
/// stays a NaN. Returns how many out[k] are NaN or infinite. Buffers may be unaligned and must not
/// overlap. Of several MiB, `out` is written past the caches. `from` or `to` may be kInt8Blocks,
/// whose first block begins with the first element; of a block that holds a value it cannot hold,
/// those values count.
int64_t pack_elements(const void* x, Dtype from, std::byte* out, Dtype to, int64_t numel,
                      SimdLevel level = simd_level());

/// x[k] <- round(acc), acc = x[k]; for each input in order acc = fma(weight, m[k] - q, acc) with
/// q = Q(x[k]) cast to `own` and back; for a weight of 1 acc = (acc - q) + m[k]. Arithmetic in
/// float32, in float64 for float64 tensors. Every level gives the same bits, up to which NaN a NaN
/// is. Blocks of kInt8Blocks begin with the first element. Buffers may be unaligned; messages must
/// not overlap x, except that one of another type than `own` may be x itself. Throws
/// std::logic_error for a level that the CPU lacks.
void mix_elements(void* x, Dtype dtype, Dtype own, std::span<const MixInput> inputs, int64_t numel,
                  SimdLevel level = simd_level());

/// out[k] = x[k], rounded up or down in 2-byte `dtype` with the chance that keeps the expectation,
/// drawn from `key` and the index first + k; what the type holds stays. Every level gives the same
/// bits. Throws std::logic_error for a type of another size.
void round_elements(std::span<const float> x, std::byte* out, Dtype dtype, uint64_t key,
                    int64_t first, SimdLevel level = simd_level());

}  // namespace crossover
