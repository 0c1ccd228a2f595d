#include "cuda/kernels.h"

namespace crossover {
namespace {

bool is_narrow(Dtype dtype) { return dtype_bytes(dtype) == 2; }

Dtype arithmetic(Dtype tensor) {
  return tensor == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
}

}  // namespace

bool can_pack(Dtype from, Dtype to) { return from == to || is_narrow(from) != is_narrow(to); }

bool can_mix(Dtype tensor, Dtype own, Dtype message) {
  const bool sends = own == tensor || (!is_narrow(tensor) && is_narrow(own));
  return sends && (message == own || message == arithmetic(tensor));
}

}  // namespace crossover
