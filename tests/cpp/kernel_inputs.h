// What the kernels are tried on.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "scalar_reference.h"

namespace crossover {

/// Values of every magnitude that the dtypes know, zeros, ties and what lies beyond their ranges.
inline std::vector<double> varied_values(int64_t numel, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> fraction(-2.0, 2.0);
  std::uniform_int_distribution<int> exponent(-160, 140);
  std::uniform_int_distribution<int> usual(-30, 18);
  std::uniform_int_distribution<int> kind(0, 7);
  std::vector<double> values(static_cast<size_t>(numel));
  for (double& value : values) {
    const int k = kind(random);
    if (k == 0)
      value = std::copysign(0.0, fraction(random));
    else if (k == 1)
      value = std::scalbn(fraction(random), exponent(random));
    else if (k == 2)
      value = std::scalbn(std::nearbyint(fraction(random) * 512), usual(random));
    else
      value = std::scalbn(fraction(random), usual(random));
  }
  return values;
}

/// A copy at an address one past a multiple of 64.
class Misaligned {
 public:
  explicit Misaligned(const reference::Bytes& bytes)
      : storage_(kPadding), num_bytes_(bytes.size()) {
    storage_.reserve(kPadding + num_bytes_);
    storage_.resize(65 - reinterpret_cast<uintptr_t>(storage_.data()) % 64);
    offset_ = storage_.size();
    storage_.insert(storage_.end(), bytes.begin(), bytes.end());
  }
  std::byte* data() { return storage_.data() + offset_; }
  reference::Bytes bytes() { return reference::Bytes(data(), data() + num_bytes_); }

 private:
  static constexpr size_t kPadding = 65;
  reference::Bytes storage_;
  size_t num_bytes_;
  size_t offset_ = 0;
};

}  // namespace crossover
