// The loops of the kernels, one source for every instruction set. Included once by each
// kernels_<level>.cpp, which differ only in their compiler flags; see kernel_elements.h for why
// everything is internal.
#pragma once

#include <cstddef>
#include <cstdint>

#include "host/kernel_blocks.h"
#include "host/kernel_elements.h"
#include "host/kernel_rounding.h"
#include "host/kernel_table.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace crossover {
namespace {  // NOLINT(google-build-namespaces)

/// Elements per block: what is staged between two loops stays in the first-level cache.
constexpr int64_t kBlockNumel = 512;

/// A message this large is written past the caches: it would not stay in them anyway.
constexpr int64_t kStreamBytes = int64_t{8} << 20;

template <class E>
constexpr int64_t kElementBytes = sizeof(typename E::Bits);

inline int64_t block_numel(int64_t begin, int64_t numel) {
  return numel - begin < kBlockNumel ? numel - begin : kBlockNumel;
}

// --- pack

/// Adding one to an exponent carries into the sign's place if the exponent is all ones.
template <class E>
typename E::Bits carry_if_not_finite(typename E::Bits bits) {
  return static_cast<typename E::Bits>((bits & E::kExponent) + E::kUlpOfExponent);
}

/// Casts a block without NaNs; true if it does hold a NaN or an infinity, or the cast makes one.
template <class From, class To>
bool cast_numbers(const std::byte* __restrict x, std::byte* __restrict out, int64_t numel) {
  typename From::Bits carries = 0;
  typename To::Bits carries_out = 0;
  for (int64_t k = 0; k < numel; ++k) {
    const auto bits = load<From>(x, k);
    carries |= carry_if_not_finite<From>(bits);
    if constexpr (__is_same(From, To)) {
      store<To>(out, k, bits);
    } else {
      const auto cast = To::encode_number(From::template decode<typename From::Arithmetic>(bits));
      carries_out |= carry_if_not_finite<To>(cast);
      store<To>(out, k, cast);
    }
  }
  return (carries >> (8 * sizeof(carries) - 1)) != 0 ||
         (carries_out >> (8 * sizeof(carries_out) - 1)) != 0;
}

/// Casts a block of anything and counts what is not finite then.
template <class From, class To>
int64_t cast_and_count(const std::byte* x, std::byte* out, int64_t numel) {
  int64_t count = 0;
  for (int64_t k = 0; k < numel; ++k) {
    const auto cast =
        To::encode(From::template decode<typename From::Arithmetic>(load<From>(x, k)));
    count += (cast & To::kExponent) == To::kExponent ? 1 : 0;
    if constexpr (!__is_same(From, To)) store<To>(out, k, cast);
  }
  return count;
}

#if defined(__SSE2__)
inline bool can_stream(const std::byte* out, int64_t num_bytes) {
  return num_bytes >= kStreamBytes && reinterpret_cast<uintptr_t>(out) % sizeof(__m128i) == 0;
}

inline void stream_copy(std::byte* out, const std::byte* in, int64_t num_bytes) {
  constexpr int64_t kStep = sizeof(__m128i);
  int64_t at = 0;
  for (; at + kStep <= num_bytes; at += kStep) {
    const __m128i value = _mm_load_si128(reinterpret_cast<const __m128i*>(in + at));
    _mm_stream_si128(reinterpret_cast<__m128i*>(out + at), value);
  }
  __builtin_memcpy(out + at, in + at, static_cast<size_t>(num_bytes - at));
}

inline void finish_streaming() { _mm_sfence(); }
#else
inline bool can_stream(const std::byte*, int64_t) { return false; }
inline void stream_copy(std::byte* out, const std::byte* in, int64_t num_bytes) {
  __builtin_memcpy(out, in, static_cast<size_t>(num_bytes));
}
inline void finish_streaming() {}
#endif

template <class From, class To>
int64_t pack(const std::byte* x, std::byte* out, int64_t numel) {
  alignas(64) std::byte staged[kBlockNumel * kElementBytes<To>];
  const bool stream = can_stream(out, numel * kElementBytes<To>);
  int64_t count = 0;
  for (int64_t begin = 0; begin < numel; begin += kBlockNumel) {
    const int64_t n = block_numel(begin, numel);
    const std::byte* from = x + begin * kElementBytes<From>;
    std::byte* to = out + begin * kElementBytes<To>;
    std::byte* image = stream ? staged : to;
    if (cast_numbers<From, To>(from, image, n)) count += cast_and_count<From, To>(from, image, n);
    if (stream) stream_copy(to, image, n * kElementBytes<To>);
  }
  if (stream) finish_streaming();
  return count;
}

// --- mix

/// Q(value). What it makes of a NaN is never seen: the sum is a NaN already.
template <class Own, class A>
A quantized(A value) {
  return Own::template decode<A>(Own::encode_number(value));
}

/// The sum with one more message of `weight`; kTaken: a weight of 1.
template <bool kTaken, class A>
A with_message(A sum, A weight, A other, A own) {
  if constexpr (kTaken) {
    return (sum - own) + other;
  } else {
    return fma(weight, other - own, sum);
  }
}

/// The common case: one message in the type that this rank sends.
template <bool kTaken, class T, class Own>
void mix_one(std::byte* __restrict x, const std::byte* __restrict message, double weight,
             int64_t numel) {
  using A = typename T::Arithmetic;
  const A w = static_cast<A>(weight);
  for (int64_t k = 0; k < numel; ++k) {
    const A own = T::template decode<A>(load<T>(x, k));
    const A other = Own::template decode<A>(load<Own>(message, k));
    store<T>(x, k, T::encode(with_message<kTaken>(own, w, other, quantized<Own>(own))));
  }
}

/// The same by blocks of the int8 wire.
template <bool kTaken, class T>
void mix_one_by_blocks(std::byte* __restrict x, const std::byte* __restrict message, double weight,
                       int64_t numel) {
  using A = typename T::Arithmetic;
  const A w = static_cast<A>(weight);
  alignas(64) float own[kInt8BlockNumel];
  alignas(64) float other[kInt8BlockNumel];
  for (int64_t begin = 0; begin < numel; begin += kInt8BlockNumel) {
    const int64_t n = part_of_block(begin, numel);
    load_block<T>(own, x + begin * kElementBytes<T>, n);
    quantize_block(own, own);
    decode_block(other, block_at(message, begin), n);
    for (int64_t k = 0; k < n; ++k) {
      const A value = T::template decode<A>(load<T>(x, begin + k));
      store<T>(x, begin + k, T::encode(with_message<kTaken>(value, w, A{other[k]}, A{own[k]})));
    }
  }
}

/// A block of a tensor on its way: the sum so far, and what this rank sends.
template <class A>
struct MixBlock {
  alignas(64) A sum[kBlockNumel];
  alignas(64) A own[kBlockNumel];
};

template <class T, class Own, class A>
void begin_block(MixBlock<A>& block, const std::byte* x, int64_t numel) {
  for (int64_t k = 0; k < numel; ++k) {
    const A value = T::template decode<A>(load<T>(x, k));
    block.sum[k] = value;
    if constexpr (!__is_same(Own, Int8Blocks)) block.own[k] = quantized<Own>(value);
  }
  if constexpr (__is_same(Own, Int8Blocks)) {
    static_assert(kBlockNumel % kInt8BlockNumel == 0);
    alignas(64) float own[kInt8BlockNumel];
    for (int64_t begin = 0; begin < numel; begin += kInt8BlockNumel) {
      load_block<T>(own, x + begin * kElementBytes<T>, part_of_block(begin, numel));
      quantize_block(own, own);
      for (int64_t k = 0; k < kInt8BlockNumel; ++k) block.own[begin + k] = own[k];
    }
  }
}

template <bool kTaken, class M, class A>
void add_elements(MixBlock<A>& block, const std::byte* message, A weight, int64_t numel) {
  for (int64_t k = 0; k < numel; ++k) {
    const A other = M::template decode<A>(load<M>(message, k));
    block.sum[k] = with_message<kTaken>(block.sum[k], weight, other, block.own[k]);
  }
}

template <bool kTaken, class A>
void add_blocks(MixBlock<A>& block, const std::byte* message, A weight, int64_t numel) {
  alignas(64) float other[kInt8BlockNumel];
  for (int64_t begin = 0; begin < numel; begin += kInt8BlockNumel) {
    const int64_t n = part_of_block(begin, numel);
    decode_block(other, block_at(message, begin), n);
    for (int64_t k = begin; k < begin + n; ++k) {
      block.sum[k] = with_message<kTaken>(block.sum[k], weight, A{other[k - begin]}, block.own[k]);
    }
  }
}

template <class M, class A>
void add_message(MixBlock<A>& block, const std::byte* message, A weight, int64_t numel) {
  if (weight == A{1}) return add_elements<true, M>(block, message, weight, numel);
  add_elements<false, M>(block, message, weight, numel);
}

template <class T, class A>
void end_block(const MixBlock<A>& block, std::byte* x, int64_t numel) {
  for (int64_t k = 0; k < numel; ++k) store<T>(x, k, T::encode(block.sum[k]));
}

template <class A>
void add_input(MixBlock<A>& block, const MixInput& input, int64_t begin, int64_t numel) {
  const A weight = static_cast<A>(input.weight);
  switch (input.dtype) {
    case Dtype::kFloat32:
      return add_message<Float32>(block, input.data + begin * 4, weight, numel);
    case Dtype::kFloat64:
      return add_message<Float64>(block, input.data + begin * 8, weight, numel);
    case Dtype::kFloat16:
      return add_message<Float16>(block, input.data + begin * 2, weight, numel);
    case Dtype::kBfloat16:
      return add_message<Bfloat16>(block, input.data + begin * 2, weight, numel);
    case Dtype::kInt8Blocks:
      const auto add = weight == A{1} ? add_blocks<true, A> : add_blocks<false, A>;
      return add(block, block_at(input.data, begin), weight, numel);
  }
}

template <bool kTaken, class T, class Own>
void mix_single(std::byte* x, const MixInput& input, int64_t numel) {
  if constexpr (__is_same(Own, Int8Blocks)) {
    mix_one_by_blocks<kTaken, T>(x, input.data, input.weight, numel);
  } else {
    mix_one<kTaken, T, Own>(x, input.data, input.weight, numel);
  }
}

template <class T, class Own>
void mix(std::byte* x, const MixInput* inputs, size_t num_inputs, int64_t numel) {
  if (num_inputs == 1 && inputs[0].dtype == Own::kDtype) {
    const bool taken = static_cast<typename T::Arithmetic>(inputs[0].weight) == 1;
    const auto one = taken ? mix_single<true, T, Own> : mix_single<false, T, Own>;
    return one(x, inputs[0], numel);
  }
  MixBlock<typename T::Arithmetic> block;
  for (int64_t begin = 0; begin < numel; begin += kBlockNumel) {
    const int64_t n = block_numel(begin, numel);
    std::byte* elements = x + begin * kElementBytes<T>;
    begin_block<T, Own>(block, elements, n);
    for (size_t j = 0; j < num_inputs; ++j) add_input(block, inputs[j], begin, n);
    end_block<T>(block, elements, n);
  }
}

// --- the table, in the order of Dtype; no tensor holds blocks

template <class E>
constexpr void fill_row(KernelTable& table) {
  constexpr auto kRow = static_cast<size_t>(E::kDtype);
  table.pack[kRow][static_cast<size_t>(Dtype::kFloat32)] = pack<E, Float32>;
  table.pack[kRow][static_cast<size_t>(Dtype::kFloat64)] = pack<E, Float64>;
  table.pack[kRow][static_cast<size_t>(Dtype::kFloat16)] = pack<E, Float16>;
  table.pack[kRow][static_cast<size_t>(Dtype::kBfloat16)] = pack<E, Bfloat16>;
  table.mix[kRow][static_cast<size_t>(Dtype::kFloat32)] = mix<E, Float32>;
  table.mix[kRow][static_cast<size_t>(Dtype::kFloat64)] = mix<E, Float64>;
  table.mix[kRow][static_cast<size_t>(Dtype::kFloat16)] = mix<E, Float16>;
  table.mix[kRow][static_cast<size_t>(Dtype::kBfloat16)] = mix<E, Bfloat16>;
  constexpr auto kBlocks = static_cast<size_t>(Dtype::kInt8Blocks);
  table.pack[kRow][kBlocks] = pack_blocks<E>;
  table.pack[kBlocks][kRow] = unpack_blocks<E>;
  table.mix[kRow][kBlocks] = mix<E, Int8Blocks>;
}

consteval KernelTable make_table() {
  KernelTable table{};
  fill_row<Float32>(table);
  fill_row<Float64>(table);
  fill_row<Float16>(table);
  fill_row<Bfloat16>(table);
  table.round[static_cast<size_t>(Dtype::kFloat16)] = round_stochastically<Float16>;
  table.round[static_cast<size_t>(Dtype::kBfloat16)] = round_stochastically<Bfloat16>;
  return table;
}

constexpr KernelTable kTable = make_table();

}  // namespace
}  // namespace crossover
