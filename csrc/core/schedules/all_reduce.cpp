#include <numeric>

#include "core/schedules/group_average.h"
#include "core/schedules/grouped.h"

namespace crossover {
namespace {

class AllReduceSchedule final : public GroupedSchedule {
 public:
  explicit AllReduceSchedule(int size)
      : GroupedSchedule("all-reduce", size, GroupRule::kSameBits), everyone_(size) {
    std::iota(everyone_.begin(), everyone_.end(), 0);
  }

 protected:
  std::vector<int> members(const RoundKey& /*key*/, int /*rank*/) const override {
    return everyone_;
  }
  int largest_group(const RoundKey& /*key*/) const override { return size(); }

 private:
  std::vector<int> everyone_;
};

}  // namespace

std::unique_ptr<Schedule> all_reduce_schedule(int size) {
  require_size("all-reduce", size);
  return std::make_unique<AllReduceSchedule>(size);
}

}  // namespace crossover
