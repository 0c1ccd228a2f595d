// The two kernels, one launch for a slice of a segment whatever the number of its tensors.
// Bit-exact against host/kernels.h, up to which NaN a NaN is.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "core/message.h"
#include "core/program.h"
#include "cuda/tiles.h"

namespace crossover {

inline constexpr int kMaxMixMessages = 64;

/// What packs have found so far, in device memory.
struct NonFiniteFound {
  unsigned long long count = 0;            // of NaNs and infinities on the wire
  unsigned int first_tensor = 0xffffffff;  // the lowest index of a tensor that held one
};

/// out[k] = Q(x[slice.begin + k]), rounded once to nearest even.
struct PackLaunch {
  TensorTable table;
  TileRange tiles;  // those of the tensors; goes_by_blocks(): segment_tiles()
  Slice slice;
  std::byte* out = nullptr;
  NonFiniteFound* found = nullptr;  // null: not counted
  Dtype from = Dtype::kFloat32;
  Dtype to = Dtype::kFloat32;
};

struct MixMessage {
  const std::byte* data = nullptr;  // of the first element of `slice`
  Slice slice;
  double weight = 0.0;
};

/// Device::mix() or replace() of device.h over messages of one type.
struct MixLaunch {
  TensorTable table;
  TileRange tiles;  // as for packs
  Slice slice;      // from the first element of any message to the last
  Dtype tensor = Dtype::kFloat32;
  Dtype own = Dtype::kFloat32;      // what this rank sends
  Dtype message = Dtype::kFloat32;  // what the messages hold
  int32_t num_messages = 0;
  uint64_t rounding_key = 0;  // as TensorList's
  bool replaces = false;      // of x only whether a message holds it matters; weights are 1
  const uint32_t* cancelled = nullptr;  // in device memory; nothing is written if it is not 0
  MixMessage messages[kMaxMixMessages];
};

/// Whether a kernel exists: for every tensor type and what wire_dtype() makes of it, and for the
/// float32 and float64 copies that programs of several phases work on.
bool can_pack(Dtype from, Dtype to);
bool can_mix(Dtype tensor, Dtype own, Dtype message);
/// Whether a kernel for this wire works on blocks of the segment. Slices are then cut at their
/// borders.
inline bool goes_by_blocks(Dtype wire) { return wire == Dtype::kInt8Blocks; }

/// Launches on the calling thread's device; a cudaError_t, 0 for success. No tiles: no launch. The
/// types are ones for which a kernel exists.
int launch_pack(const PackLaunch& launch, StreamHandle stream);
int launch_mix(const MixLaunch& launch, StreamHandle stream);

}  // namespace crossover
