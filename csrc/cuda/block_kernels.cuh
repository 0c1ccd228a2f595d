// Pack and mix by blocks of the int8 wire (core/dtype.h): a warp makes one at a time, each lane
// four elements of it. A kernel's block of threads goes over kTileNumel elements of the segment,
// whichever tensors they lie in.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/kernels.h"

namespace crossover {

constexpr int kWarp = 32;
constexpr int kLaneNumel = static_cast<int>(kInt8BlockNumel) / kWarp;
constexpr int64_t kInt8BlockBytes = kInt8ScaleBytes + kInt8BlockNumel;
static_assert(kLaneNumel == 4 && kTileNumel % kInt8BlockNumel == 0);

/// Which elements of the segment a warp has before it.
struct WarpBlock {
  int64_t begin;
  int numel;  // at most kInt8BlockNumel

  __device__ int lane_begin() const { return static_cast<int>(threadIdx.x % kWarp) * kLaneNumel; }
  __device__ bool holds(int k) const { return lane_begin() + k < numel; }
};

/// Calls f with each WarpBlock of this block of threads within `slice`.
template <class F>
__device__ void for_each_block(const TileRange& tiles, const Slice& slice, F&& f) {
  const int64_t tile_begin = static_cast<int64_t>(tiles.first + blockIdx.x) * kTileNumel;
  for (int64_t at = threadIdx.x / kWarp; at < kTileNumel / kInt8BlockNumel;
       at += blockDim.x / kWarp) {
    const int64_t begin = tile_begin + at * kInt8BlockNumel;
    if (begin < slice.begin || begin >= slice.end) continue;
    const int64_t left = slice.end - begin;
    f(WarpBlock{begin, static_cast<int>(left < kInt8BlockNumel ? left : kInt8BlockNumel)});
  }
}

/// Finds the tensors of elements that come in ascending order.
class TensorCursor {
 public:
  __device__ TensorCursor(const TensorTable& table, int64_t element) : table_(table) {
    if (table.tensor_of_tile == nullptr) {
      entry_ = table.only;
      return;
    }
    uint32_t low = 0;
    for (uint32_t high = table.num_tensors - 1; low < high;) {
      const uint32_t middle = (low + high + 1) / 2;
      if (table.tensors[middle].first_element <= element) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    index_ = low;
    entry_ = table.tensors[low];
  }

  __device__ void move_to(int64_t element) {
    while (element >= entry_.first_element + entry_.numel) entry_ = table_.tensors[++index_];
  }
  template <class E>
  __device__ typename E::Storage* address(int64_t element) const {
    return reinterpret_cast<typename E::Storage*>(entry_.data) + (element - entry_.first_element);
  }
  __device__ int64_t end() const { return entry_.first_element + entry_.numel; }
  __device__ uint32_t index() const { return index_; }

 private:
  const TensorTable& table_;
  TensorEntry entry_;
  uint32_t index_ = 0;
};

/// A lane's elements of a block, in registers; what is behind the block's end counts as zero.
template <class T>
struct LaneElements {
  static constexpr int kPartNumel = sizeof(typename T::Storage) == 8 ? 2 : kLaneNumel;
  using Part = Vector<T, kPartNumel>;

  typename T::Storage* address[kLaneNumel] = {};
  uint32_t tensor[kLaneNumel] = {};
  Part parts[kLaneNumel / kPartNumel] = {};
  bool is_aligned = false;

  __device__ LaneElements(const TensorTable& table, const WarpBlock& block) {
    TensorCursor cursor(table, block.begin);
    const int64_t first = block.begin + block.lane_begin();
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      if (!block.holds(k)) continue;
      cursor.move_to(first + k);
      address[k] = cursor.address<T>(first + k);
      tensor[k] = cursor.index();
    }
    is_aligned = block.holds(kLaneNumel - 1) && tensor[0] == tensor[kLaneNumel - 1] &&
                 Part::is_aligned(address[0]);
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      if (is_aligned && k % kPartNumel == 0) parts[k / kPartNumel].load(address[k]);
      if (!is_aligned && block.holds(k)) value(k) = *address[k];
    }
  }

  __device__ typename T::Storage& value(int k) {
    return parts[k / kPartNumel].elements[k % kPartNumel];
  }
  __device__ typename T::Storage value(int k) const {
    return parts[k / kPartNumel].elements[k % kPartNumel];
  }

  __device__ float as_float(int k) const {
    if (address[k] == nullptr) return 0.0F;
    if constexpr (std::is_same_v<T, Float64>) {
      return __double2float_rn(value(k));
    } else {
      return T::template decode<float>(value(k));
    }
  }

  /// Writes what value() was set to.
  __device__ void store() const {
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      if (is_aligned && k % kPartNumel == 0) parts[k / kPartNumel].store(address[k]);
      if (!is_aligned && address[k] != nullptr) *address[k] = value(k);
    }
  }
};

constexpr unsigned int kTooSmall = 0x0d800000U;  // 2^-100
constexpr unsigned int kTooLarge = 0x7f000000U;  // 2^127

struct BlockScale {
  float scale;
  float inverse;
  bool is_finite;
};

__device__ inline unsigned int magnitude_bits(float value) {
  return __float_as_uint(value) & 0x7fffffffU;
}

/// Of the block whose elements the warp holds; all lanes get the same.
__device__ inline BlockScale scale_of(const float (&values)[kLaneNumel]) {
  unsigned int largest = 0;
#pragma unroll
  for (int k = 0; k < kLaneNumel; ++k) largest = max(largest, magnitude_bits(values[k]));
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    largest = max(largest, __shfl_xor_sync(0xffffffffU, largest, step));
  }
  if (largest >= kTooLarge) return {__uint_as_float(0x7fc00000U), 0.0F, false};
  if (largest < kTooSmall) return {0.0F, 0.0F, true};
  const float exact = __fdiv_rn(__uint_as_float(largest), 127.0F);
  const float scale = __uint_as_float((__float_as_uint(exact) + 0xffU) & ~0xffU);
  return {scale, __fdiv_rn(1.0F, scale), true};
}

/// value / scale, rounded to an integer.
__device__ inline float steps_of(float value, const BlockScale& scale) {
  constexpr float kRounder = 12582912.0F;  // 1.5 * 2^23
  return __fsub_rn(__fadd_rn(__fmul_rn(value, scale.inverse), kRounder), kRounder);
}

__device__ inline int64_t block_offset(int64_t element) {
  return element / kInt8BlockNumel * kInt8BlockBytes;
}

/// Four bytes of a block, from the lane's first element on.
__device__ inline std::byte* lane_bytes(std::byte* block, const WarpBlock& at) {
  return block + kInt8ScaleBytes + at.lane_begin();
}

__device__ inline bool is_word(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 4 == 0;
}

/// What a lane's elements of a sent block stand for.
__device__ inline void decode_lane(float (&values)[kLaneNumel], const std::byte* block,
                                   const WarpBlock& at) {
  float scale;
  memcpy(&scale, block, sizeof(scale));
  const std::byte* from = block + kInt8ScaleBytes + at.lane_begin();
  signed char bytes[kLaneNumel] = {};
  if (at.holds(kLaneNumel - 1) && is_word(from)) {
    const unsigned int word = __ldcg(reinterpret_cast<const unsigned int*>(from));
    memcpy(bytes, &word, sizeof(word));
  } else {
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      if (at.holds(k)) bytes[k] = static_cast<signed char>(from[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kLaneNumel; ++k) {
    values[k] = __fmul_rn(static_cast<float>(bytes[k]), scale);
  }
}

__device__ inline void encode_lane(std::byte* block, const WarpBlock& at,
                                   const float (&values)[kLaneNumel], const BlockScale& scale) {
  if (threadIdx.x % kWarp == 0) memcpy(block, &scale.scale, sizeof(scale.scale));
  signed char bytes[kLaneNumel];
#pragma unroll
  for (int k = 0; k < kLaneNumel; ++k) {
    bytes[k] = scale.is_finite ? static_cast<signed char>(steps_of(values[k], scale)) : 0;
  }
  std::byte* to = lane_bytes(block, at);
  if (at.holds(kLaneNumel - 1) && is_word(to)) {
    unsigned int word;
    memcpy(&word, bytes, sizeof(word));
    __stcg(reinterpret_cast<unsigned int*>(to), word);
    return;
  }
#pragma unroll
  for (int k = 0; k < kLaneNumel; ++k) {
    if (at.holds(k)) to[k] = static_cast<std::byte>(bytes[k]);
  }
}

template <class T>
__global__ void pack_blocks(const __grid_constant__ PackLaunch launch) {
  for_each_block(launch.tiles, launch.slice, [&](const WarpBlock& at) {
    const LaneElements<T> x(launch.table, at);
    float values[kLaneNumel];
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) values[k] = x.as_float(k);
    const BlockScale scale = scale_of(values);
    encode_lane(launch.out + block_offset(at.begin - launch.slice.begin), at, values, scale);
    if (scale.is_finite || launch.found == nullptr) return;
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      if (magnitude_bits(values[k]) < kTooLarge) continue;
      atomicAdd(&launch.found->count, 1ULL);
      atomicMin(&launch.found->first_tensor, x.tensor[k]);
    }
  });
}

/// From one packed message, the launch's only tensor.
template <class W>
__global__ void unpack_blocks(const __grid_constant__ PackLaunch launch) {
  for_each_block(launch.tiles, launch.slice, [&](const WarpBlock& at) {
    float values[kLaneNumel];
    decode_lane(values, launch.table.only.data + block_offset(at.begin), at);
    auto* out = reinterpret_cast<typename W::Storage*>(launch.out) + (at.begin + at.lane_begin());
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      if (at.holds(k)) out[k] = W::encode(static_cast<typename W::Arithmetic>(values[k]));
    }
  });
}

/// The wire's own type in place of an element type.
struct Int8Blocks {};

/// What a message holds of a block that it covers.
template <class M, class A>
__device__ void other_values(A (&values)[kLaneNumel], const MixMessage& message,
                             const WarpBlock& at) {
  const int64_t begin = at.begin - message.slice.begin;
  if constexpr (std::is_same_v<M, Int8Blocks>) {
    float decoded[kLaneNumel];
    decode_lane(decoded, message.data + block_offset(begin), at);
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) values[k] = decoded[k];
  } else {
    const auto* from =
        reinterpret_cast<const typename M::Storage*>(message.data) + (begin + at.lane_begin());
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      values[k] = at.holds(k) ? M::template decode<A>(from[k]) : A(0);
    }
  }
}

template <class T, class M>
__device__ void mix_block(const MixLaunch& launch, const WarpBlock& at) {
  using A = typename T::Arithmetic;
  LaneElements<T> x(launch.table, at);
  float own[kLaneNumel];
  A sum[kLaneNumel];
#pragma unroll
  for (int k = 0; k < kLaneNumel; ++k) {
    own[k] = launch.replaces ? 0.0F : x.as_float(k);
    sum[k] = launch.replaces ? A(0) : T::template decode<A>(x.value(k));
  }
  const BlockScale scale = scale_of(own);
#pragma unroll
  for (int k = 0; k < kLaneNumel; ++k) own[k] = __fmul_rn(steps_of(own[k], scale), scale.scale);
  bool any = false;
  for (int j = 0; j < launch.num_messages; ++j) {
    const MixMessage& message = launch.messages[j];
    if (at.begin < message.slice.begin || at.begin >= message.slice.end) continue;
    any = true;
    A other[kLaneNumel];
    other_values<M>(other, message, at);
    const A weight = static_cast<A>(message.weight);
#pragma unroll
    for (int k = 0; k < kLaneNumel; ++k) {
      sum[k] = with_message(sum[k], weight, other[k], static_cast<A>(own[k]));
    }
  }
  if (!any) return;
#pragma unroll
  for (int k = 0; k < kLaneNumel; ++k) {
    x.value(k) = stored<T>(sum[k], launch.rounding_key, at.begin + at.lane_begin() + k);
  }
  x.store();
}

template <class T, class M>
__global__ void mix_blocks(const __grid_constant__ MixLaunch launch) {
  if (launch.cancelled != nullptr && *launch.cancelled != 0) return;
  for_each_block(launch.tiles, launch.slice,
                 [&](const WarpBlock& at) { mix_block<T, M>(launch, at); });
}

}  // namespace crossover
