// Walks the memory of tensors laid end to end. Private to host.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/device.h"

namespace crossover {

/// Throws std::logic_error unless the slice lies within the tensors.
void check_slice(const TensorList& tensors, Slice slice);

/// A slice in runs of elements that lie together, whole units of a codec each. A unit that several
/// tensors share is gathered into memory of the walk's own.
class TensorWalk {
 public:
  struct Run {
    std::byte* data;
    int64_t numel;
    size_t tensor;  // that of the first element
  };

  /// Throws std::logic_error unless the slice lies within the tensors, begins at a multiple of
  /// `unit_numel` elements, at most kSliceUnitNumel, and ends at one or with the tensors.
  TensorWalk(const TensorList& tensors, Slice slice, int64_t unit_numel = 1);

  int64_t remaining() const { return remaining_; }

  /// The next elements, whole units unless they are the last: at least one and at most `max_numel`,
  /// which has room for a unit. Elements remain. The run is valid until the next call.
  Run next(int64_t max_numel);

  /// After the last run was written to: scatters it, if it was gathered.
  void write_back();

 private:
  struct Piece {
    std::byte* data;
    size_t num_bytes;
  };

  Run take(int64_t max_numel);
  Run gather(int64_t numel);

  TensorList tensors_;
  const int64_t unit_numel_;
  size_t tensor_ = 0;
  int64_t offset_;  // within the tensor; may be past its end
  int64_t remaining_;
  std::vector<Piece> pieces_;  // of the last run, if it was gathered
  std::array<std::byte, 8 * kSliceUnitNumel> gathered_;
};

}  // namespace crossover
