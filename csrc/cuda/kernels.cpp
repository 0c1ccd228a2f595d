#include "cuda/kernels.h"

namespace crossover {
namespace {

bool is_narrow(Dtype dtype) { return dtype_bytes(dtype) == 2; }

Dtype arithmetic(Dtype tensor) {
  return tensor == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
}

}  // namespace

bool can_pack(Dtype from, Dtype to) {
  if (goes_by_blocks(to)) return !goes_by_blocks(from);
  if (goes_by_blocks(from)) return !is_narrow(to);
  return from == to || is_narrow(from) != is_narrow(to);
}

bool can_mix(Dtype tensor, Dtype own, Dtype message) {
  if (goes_by_blocks(tensor)) return false;
  const bool sends = own == tensor || goes_by_blocks(own) || (!is_narrow(tensor) && is_narrow(own));
  return sends && (message == own || message == arithmetic(tensor));
}

}  // namespace crossover
