#include <algorithm>

#include "core/error.h"
#include "core/schedules/grouped.h"

namespace crossover {
namespace {

std::vector<int> prime_factors(int number) {
  std::vector<int> factors;
  for (int factor = 2; factor <= number / factor; ++factor) {
    for (; number % factor == 0; number /= factor) factors.push_back(factor);
  }
  if (number > 1) factors.push_back(number);
  return factors;
}

class MixedRadixSchedule final : public GroupedSchedule {
 public:
  MixedRadixSchedule(int size, const std::vector<int>& radices)
      : GroupedSchedule("mixed-radix", size, GroupRule::kKeepMean) {
    int stride = 1;
    for (int radix : radices) {
      digits_.push_back({radix, stride});
      stride *= radix;
    }
    if (digits_.empty()) digits_.push_back({1, 1});
  }

 protected:
  std::vector<int> members(const RoundKey& key, int rank) const override {
    const auto [radix, stride] = digit(key);
    const int first = rank - rank / stride % radix * stride;
    std::vector<int> group(radix);
    for (int value = 0; value < radix; ++value) group[value] = first + value * stride;
    return group;
  }
  int largest_group(const RoundKey& key) const override { return digit(key).radix; }

 private:
  struct Digit {
    int radix;
    int stride;
  };

  const Digit& digit(const RoundKey& key) const {
    const uint64_t period = digits_.size();
    return digits_[(key.round % period + key.segment % period) % period];
  }

  std::vector<Digit> digits_;
};

void check_radices(int size, const std::vector<int>& radices) {
  int64_t product = 1;
  for (int radix : radices) {
    if (radix < 2) {
      throw InvalidArgument("mixed-radix: radices: expected each at least 2, got " +
                            std::to_string(radix));
    }
    product = std::min<int64_t>(product * radix, int64_t{1} << 31);
  }
  if (product == size) return;
  throw InvalidArgument("mixed-radix: radices: expected a product of " + std::to_string(size) +
                        ", the number of ranks, got " + std::to_string(product));
}

}  // namespace

std::unique_ptr<Schedule> mixed_radix_schedule(int size, std::vector<int> radices) {
  require_size("mixed-radix", size);
  if (radices.empty()) radices = prime_factors(size);
  check_radices(size, radices);
  return std::make_unique<MixedRadixSchedule>(size, radices);
}

}  // namespace crossover
