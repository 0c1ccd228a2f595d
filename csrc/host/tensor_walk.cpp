#include "host/tensor_walk.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "host/host_device.h"

namespace crossover {

void check_slice(const TensorList& tensors, Slice slice) {
  check(tensors.addresses.size() == tensors.numels.size(), "an address per tensor");
  check(slice.begin >= 0 && slice.numel() >= 0 && slice.end <= total_numel(tensors),
        "a slice lies within its tensors");
}

TensorWalk::TensorWalk(const TensorList& tensors, Slice slice, int64_t unit_numel)
    : tensors_(tensors), unit_numel_(unit_numel), offset_(slice.begin), remaining_(slice.numel()) {
  check_slice(tensors, slice);
  check(slice.begin % unit_numel == 0 &&
            (slice.end % unit_numel == 0 || slice.end == total_numel(tensors)),
        "a slice is cut at whole units of its codec");
}

TensorWalk::Run TensorWalk::next(int64_t max_numel) {
  pieces_.clear();
  while (offset_ >= tensors_.numels[tensor_]) offset_ -= tensors_.numels[tensor_++];
  const int64_t together = std::min({max_numel, remaining_, tensors_.numels[tensor_] - offset_});
  if (together == remaining_) return take(together);
  const int64_t whole = together - together % unit_numel_;
  return whole > 0 ? take(whole) : gather(std::min(unit_numel_, remaining_));
}

TensorWalk::Run TensorWalk::take(int64_t max_numel) {
  while (offset_ >= tensors_.numels[tensor_]) offset_ -= tensors_.numels[tensor_++];
  const int64_t numel = std::min(max_numel, tensors_.numels[tensor_] - offset_);
  auto* data = static_cast<std::byte*>(tensors_.addresses[tensor_]);
  const Run run{data + static_cast<size_t>(offset_) * dtype_bytes(tensors_.dtype), numel, tensor_};
  offset_ += numel;
  remaining_ -= numel;
  return run;
}

TensorWalk::Run TensorWalk::gather(int64_t numel) {
  const size_t first = tensor_;
  std::byte* to = gathered_.data();
  for (int64_t left = numel; left > 0;) {
    const Run run = take(left);
    const size_t num_bytes = static_cast<size_t>(run.numel) * dtype_bytes(tensors_.dtype);
    std::memcpy(to, run.data, num_bytes);
    pieces_.push_back({run.data, num_bytes});
    to += num_bytes;
    left -= run.numel;
  }
  return {gathered_.data(), numel, first};
}

void TensorWalk::write_back() {
  const std::byte* from = gathered_.data();
  for (const Piece& piece : pieces_) {
    std::memcpy(piece.data, from, piece.num_bytes);
    from += piece.num_bytes;
  }
}

}  // namespace crossover
