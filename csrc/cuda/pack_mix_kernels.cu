#include <cuda_runtime_api.h>

#include "cuda/block_kernels.cuh"
#include "cuda/elements.cuh"
#include "cuda/kernels.h"

namespace crossover {
namespace {

constexpr int kThreads = 256;
static_assert(kTileNumel % kThreads == 0);

/// Elements of a tile per thread.
constexpr int kNumelPerThread = static_cast<int>(kTileNumel / kThreads);

__device__ TensorEntry tensor_of(const TensorTable& table, uint32_t tile) {
  if (table.tensor_of_tile == nullptr) return table.only;
  return table.tensors[table.tensor_of_tile[tile]];
}

template <class E>
__device__ typename E::Storage* elements_of(const TensorEntry& tensor, const TilePart& part) {
  return reinterpret_cast<typename E::Storage*>(tensor.data) + part.in_tensor;
}

// --- pack

__device__ void note(NonFiniteFound* found, const TensorTable& table, uint32_t tile,
                     unsigned int count) {
  if (count == 0 || found == nullptr) return;
  const unsigned int tensor = table.tensor_of_tile == nullptr ? 0 : table.tensor_of_tile[tile];
  atomicAdd(&found->count, count);
  atomicMin(&found->first_tensor, tensor);
}

template <class T, class W>
__device__ typename W::Storage cast(typename T::Storage x, unsigned int& non_finite) {
  typename W::Storage sent;
  if constexpr (std::is_same_v<T, W>) {
    sent = x;
  } else if constexpr (std::is_same_v<W, Float64>) {
    sent = T::template decode<double>(x);
  } else {
    sent = W::encode(T::template decode<typename T::Arithmetic>(x));
  }
  non_finite += W::is_finite(sent) ? 0U : 1U;
  return sent;
}

/// The part's whole vectors; true number of elements done is returned.
template <class T, class W>
__device__ int pack_vectors(const typename T::Storage* x, typename W::Storage* out, int numel,
                            unsigned int& non_finite) {
  constexpr int kNumel = kVectorNumel<T, W>;
  constexpr int kRounds = kNumelPerThread / kNumel;
  Vector<T, kNumel> in[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int at = (r * kThreads + static_cast<int>(threadIdx.x)) * kNumel;
    if (at + kNumel <= numel) in[r].load(x + at);
  }
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int at = (r * kThreads + static_cast<int>(threadIdx.x)) * kNumel;
    if (at + kNumel > numel) break;
    Vector<W, kNumel> packed;
#pragma unroll
    for (int k = 0; k < kNumel; ++k) {
      packed.elements[k] = cast<T, W>(in[r].elements[k], non_finite);
    }
    packed.store(out + at);
  }
  return numel / kNumel * kNumel;
}

template <class T, class W>
__global__ void __launch_bounds__(kThreads) pack(const __grid_constant__ PackLaunch launch) {
  constexpr int kNumel = kVectorNumel<T, W>;
  const uint32_t tile = launch.tiles.first + blockIdx.x;
  const TensorEntry tensor = tensor_of(launch.table, tile);
  const TilePart part = part_of_tile(tensor, tile, launch.slice);
  const auto* x = elements_of<T>(tensor, part);
  auto* out =
      reinterpret_cast<typename W::Storage*>(launch.out) + (part.in_segment - launch.slice.begin);
  const int numel = static_cast<int>(part.numel);
  unsigned int non_finite = 0;
  int done = 0;
  if (Vector<T, kNumel>::is_aligned(x) && Vector<W, kNumel>::is_aligned(out)) {
    done = pack_vectors<T, W>(x, out, numel, non_finite);
  }
  for (int k = done + static_cast<int>(threadIdx.x); k < numel; k += kThreads) {
    out[k] = cast<T, W>(x[k], non_finite);
  }
  note(launch.found, launch.table, tile, non_finite);
}

// --- mix

template <class T, class Own>
__device__ typename T::Arithmetic quantized(typename T::Arithmetic value) {
  using A = typename T::Arithmetic;
  return Own::template decode<A>(Own::encode(value));
}

__device__ bool covers(const Slice& slice, const TilePart& part) {
  return slice.begin <= part.in_segment && slice.end >= part.in_segment + part.numel;
}

__device__ bool touches(const Slice& slice, const TilePart& part) {
  return slice.begin < part.in_segment + part.numel && slice.end > part.in_segment;
}

/// Element `part.in_segment` of a message, which may lie before its first.
template <class M>
__device__ const typename M::Storage* aligned_with(const MixMessage& message,
                                                   const TilePart& part) {
  return reinterpret_cast<const typename M::Storage*>(message.data) +
         (part.in_segment - message.slice.begin);
}

enum class Access { kNone, kVector, kScalar };

/// By which path a part is mixed: vectors if every message that touches it covers it, all aligned.
template <class M, int kNumel>
__device__ Access access_of(const MixLaunch& launch, const TilePart& part, bool x_is_aligned) {
  Access access = Access::kNone;
  for (int j = 0; j < launch.num_messages; ++j) {
    const MixMessage& message = launch.messages[j];
    if (!touches(message.slice, part)) continue;
    const bool vector = x_is_aligned && covers(message.slice, part) &&
                        Vector<M, kNumel>::is_aligned(aligned_with<M>(message, part));
    if (!vector) return Access::kScalar;
    access = Access::kVector;
  }
  return access;
}

template <class T, class Own, class M>
__device__ void mix_element(const MixLaunch& launch, const TilePart& part, typename T::Storage* x,
                            int k) {
  using A = typename T::Arithmetic;
  const A value = launch.replaces ? A(0) : T::template decode<A>(x[k]);
  const A own = quantized<T, Own>(value);
  A sum = value;
  bool any = false;
  for (int j = 0; j < launch.num_messages; ++j) {
    const MixMessage& message = launch.messages[j];
    const int64_t element = part.in_segment + k;
    if (element < message.slice.begin || element >= message.slice.end) continue;
    const A other = M::template decode<A>(aligned_with<M>(message, part)[k]);
    sum = with_message(sum, static_cast<A>(message.weight), other, own);
    any = true;
  }
  if (any) x[k] = stored<T>(sum, launch.rounding_key, part.in_segment + k);
}

/// A thread's vectors of one tile.
template <class T, class Own, class M>
struct MixTile {
  using A = typename T::Arithmetic;
  static constexpr int kNumel = kVectorNumel<T, M>;
  static constexpr int kRounds = kNumelPerThread / kNumel;

  int numel;
  A sum[kNumelPerThread];
  A own[kNumelPerThread];

  __device__ static int at(int round) {
    return (round * kThreads + static_cast<int>(threadIdx.x)) * kNumel;
  }
  __device__ bool holds(int round) const { return at(round) + kNumel <= numel; }

  template <class E>
  __device__ void load(Vector<E, kNumel> (&vectors)[kRounds],
                       const typename E::Storage* from) const {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      if (holds(r)) vectors[r].load(from + at(r));
    }
  }

  /// A sum that starts at 0 and differs by the whole message is the message.
  __device__ void begin(const Vector<T, kNumel> (&x)[kRounds], bool replaces) {
#pragma unroll
    for (int k = 0; k < kNumelPerThread; ++k) {
      sum[k] = replaces ? A(0) : T::template decode<A>(x[k / kNumel].elements[k % kNumel]);
      own[k] = quantized<T, Own>(sum[k]);
    }
  }

  __device__ void add(const Vector<M, kNumel> (&message)[kRounds], A weight) {
#pragma unroll
    for (int k = 0; k < kNumelPerThread; ++k) {
      const A other = M::template decode<A>(message[k / kNumel].elements[k % kNumel]);
      sum[k] = with_message(sum[k], weight, other, own[k]);
    }
  }

  /// `first`: the element of the segment that x points to.
  __device__ void end(typename T::Storage* x, uint64_t rounding_key, int64_t first) const {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      Vector<T, kNumel> mixed;
#pragma unroll
      for (int k = 0; k < kNumel; ++k) {
        mixed.elements[k] = stored<T>(sum[r * kNumel + k], rounding_key, first + at(r) + k);
      }
      if (holds(r)) mixed.store(x + at(r));
    }
  }
};

/// The part's whole vectors; the number of elements done is returned. The loads of the tensor and
/// of the first message are under way together.
template <class T, class Own, class M>
__device__ int mix_vectors(const MixLaunch& launch, const TilePart& part, typename T::Storage* x) {
  using Tile = MixTile<T, Own, M>;
  Tile tile;
  tile.numel = static_cast<int>(part.numel);
  Vector<T, Tile::kNumel> values[Tile::kRounds] = {};
  Vector<M, Tile::kNumel> message[Tile::kRounds] = {};
  tile.load(values, x);
  bool begun = false;
  for (int j = 0; j < launch.num_messages; ++j) {
    if (!touches(launch.messages[j].slice, part)) continue;
    tile.load(message, aligned_with<M>(launch.messages[j], part));
    if (!begun) tile.begin(values, launch.replaces);
    begun = true;
    tile.add(message, static_cast<typename T::Arithmetic>(launch.messages[j].weight));
  }
  tile.end(x, launch.rounding_key, part.in_segment);
  return tile.numel / Tile::kNumel * Tile::kNumel;
}

template <class T, class Own, class M>
__global__ void __launch_bounds__(kThreads) mix(const __grid_constant__ MixLaunch launch) {
  constexpr int kNumel = kVectorNumel<T, M>;
  if (launch.cancelled != nullptr && *launch.cancelled != 0) return;
  const uint32_t tile = launch.tiles.first + blockIdx.x;
  const TensorEntry tensor = tensor_of(launch.table, tile);
  const TilePart part = part_of_tile(tensor, tile, launch.slice);
  auto* x = elements_of<T>(tensor, part);
  const Access access = access_of<M, kNumel>(launch, part, Vector<T, kNumel>::is_aligned(x));
  if (access == Access::kNone) return;
  const int done = access == Access::kVector ? mix_vectors<T, Own, M>(launch, part, x) : 0;
  for (int k = done + static_cast<int>(threadIdx.x); k < static_cast<int>(part.numel);
       k += kThreads) {
    mix_element<T, Own, M>(launch, part, x, k);
  }
}

// --- the kernels there are

struct PackKernel {
  Dtype from;
  Dtype to;
  void (*kernel)(PackLaunch);
};

constexpr Dtype kF32 = Dtype::kFloat32;
constexpr Dtype kF64 = Dtype::kFloat64;
constexpr Dtype kF16 = Dtype::kFloat16;
constexpr Dtype kBf16 = Dtype::kBfloat16;
constexpr Dtype kI8 = Dtype::kInt8Blocks;

const PackKernel kPackKernels[] = {
    {kF32, kF32, pack<Float32, Float32>},   {kF32, kF16, pack<Float32, Float16>},
    {kF32, kBf16, pack<Float32, Bfloat16>}, {kF64, kF64, pack<Float64, Float64>},
    {kF64, kF16, pack<Float64, Float16>},   {kF64, kBf16, pack<Float64, Bfloat16>},
    {kF16, kF16, pack<Float16, Float16>},   {kF16, kF32, pack<Float16, Float32>},
    {kF16, kF64, pack<Float16, Float64>},   {kBf16, kBf16, pack<Bfloat16, Bfloat16>},
    {kBf16, kF32, pack<Bfloat16, Float32>}, {kBf16, kF64, pack<Bfloat16, Float64>},
    {kF32, kI8, pack_blocks<Float32>},      {kF64, kI8, pack_blocks<Float64>},
    {kF16, kI8, pack_blocks<Float16>},      {kBf16, kI8, pack_blocks<Bfloat16>},
    {kI8, kF32, unpack_blocks<Float32>},    {kI8, kF64, unpack_blocks<Float64>},
};

struct MixKernel {
  Dtype tensor;
  Dtype own;
  Dtype message;
  void (*kernel)(MixLaunch);
};

const MixKernel kMixKernels[] = {
    {kF32, kF32, kF32, mix<Float32, Float32, Float32>},
    {kF32, kF16, kF16, mix<Float32, Float16, Float16>},
    {kF32, kF16, kF32, mix<Float32, Float16, Float32>},
    {kF32, kBf16, kBf16, mix<Float32, Bfloat16, Bfloat16>},
    {kF32, kBf16, kF32, mix<Float32, Bfloat16, Float32>},
    {kF64, kF64, kF64, mix<Float64, Float64, Float64>},
    {kF64, kF16, kF16, mix<Float64, Float16, Float16>},
    {kF64, kF16, kF64, mix<Float64, Float16, Float64>},
    {kF64, kBf16, kBf16, mix<Float64, Bfloat16, Bfloat16>},
    {kF64, kBf16, kF64, mix<Float64, Bfloat16, Float64>},
    {kF16, kF16, kF16, mix<Float16, Float16, Float16>},
    {kF16, kF16, kF32, mix<Float16, Float16, Float32>},
    {kBf16, kBf16, kBf16, mix<Bfloat16, Bfloat16, Bfloat16>},
    {kBf16, kBf16, kF32, mix<Bfloat16, Bfloat16, Float32>},
    {kF32, kI8, kI8, mix_blocks<Float32, Int8Blocks>},
    {kF32, kI8, kF32, mix_blocks<Float32, Float32>},
    {kF64, kI8, kI8, mix_blocks<Float64, Int8Blocks>},
    {kF64, kI8, kF64, mix_blocks<Float64, Float64>},
    {kF16, kI8, kI8, mix_blocks<Float16, Int8Blocks>},
    {kF16, kI8, kF32, mix_blocks<Float16, Float32>},
    {kBf16, kI8, kI8, mix_blocks<Bfloat16, Int8Blocks>},
    {kBf16, kI8, kF32, mix_blocks<Bfloat16, Float32>},
};

const PackKernel* find_pack(Dtype from, Dtype to) {
  for (const PackKernel& entry : kPackKernels) {
    if (entry.from == from && entry.to == to) return &entry;
  }
  return nullptr;
}

const MixKernel* find_mix(Dtype tensor, Dtype own, Dtype message) {
  for (const MixKernel& entry : kMixKernels) {
    if (entry.tensor == tensor && entry.own == own && entry.message == message) return &entry;
  }
  return nullptr;
}

template <class Launch>
int launch_tiles(void (*kernel)(Launch), const Launch& launch, StreamHandle stream) {
  if (launch.tiles.count == 0) return cudaSuccess;
  void* arguments[] = {const_cast<Launch*>(&launch)};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(launch.tiles.count),
                          dim3(kThreads), arguments, 0, reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace

int launch_pack(const PackLaunch& launch, StreamHandle stream) {
  const PackKernel* entry = find_pack(launch.from, launch.to);
  return entry == nullptr ? cudaErrorInvalidDeviceFunction
                          : launch_tiles(entry->kernel, launch, stream);
}

int launch_mix(const MixLaunch& launch, StreamHandle stream) {
  const MixKernel* entry = find_mix(launch.tensor, launch.own, launch.message);
  return entry == nullptr ? cudaErrorInvalidDeviceFunction
                          : launch_tiles(entry->kernel, launch, stream);
}

}  // namespace crossover
