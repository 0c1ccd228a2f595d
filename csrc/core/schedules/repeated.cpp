#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"
#include "core/schedule.h"

namespace crossover {
namespace {

class RepeatedSchedule final : public Schedule {
 public:
  RepeatedSchedule(std::shared_ptr<const Schedule> inner, uint64_t rounds_per_step)
      : inner_(std::move(inner)), rounds_per_step_(rounds_per_step) {}
  std::string_view name() const override { return inner_->name(); }
  int size() const override { return inner_->size(); }
  Stochasticity stochasticity() const override { return inner_->stochasticity(); }
  int num_phases(const RoundKey& key) const override {
    int total = 0;
    for (uint64_t i = 0; i < rounds_per_step_; ++i) total += inner_->num_phases(inner_key(key, i));
    return total;
  }
  Program program(const RoundKey& key, int64_t numel, int rank) const override {
    Program all;
    size_t num_before = 0;  // phases of the rounds so far, on the rank that has most
    for (uint64_t i = 0; i < rounds_per_step_; ++i) {
      Program one = inner_->program(inner_key(key, i), numel, rank);
      if (!one.phases.empty()) all.phases.resize(num_before);
      std::ranges::move(one.phases, std::back_inserter(all.phases));
      num_before += inner_->num_phases(inner_key(key, i));
      all.same_bits = all.same_bits || one.same_bits;
    }
    return all;
  }

 private:
  RoundKey inner_key(const RoundKey& key, uint64_t index) const {
    return {key.round * rounds_per_step_ + index, key.segment};
  }

  const std::shared_ptr<const Schedule> inner_;
  const uint64_t rounds_per_step_;
};

}  // namespace

std::unique_ptr<Schedule> repeated_schedule(std::shared_ptr<const Schedule> inner,
                                            uint64_t rounds_per_step) {
  if (rounds_per_step < 1) {
    throw InvalidArgument("rounds_per_step: expected at least 1, got 0");
  }
  return std::make_unique<RepeatedSchedule>(std::move(inner), rounds_per_step);
}

}  // namespace crossover
