#include <utility>

#include "core/schedule.h"

namespace crossover {
namespace {

class ExactAverageSchedule final : public Schedule {
 public:
  ExactAverageSchedule(std::shared_ptr<const Schedule> inner, uint64_t every, uint64_t first)
      : inner_(std::move(inner)),
        exact_(all_reduce_schedule(inner_->size())),
        every_(every),
        first_(first) {}
  std::string_view name() const override { return inner_->name(); }
  int size() const override { return inner_->size(); }
  Stochasticity stochasticity() const override { return inner_->stochasticity(); }
  int num_phases(const RoundKey& key) const override { return chosen(key).num_phases(key); }
  Program program(const RoundKey& key, int64_t numel, int rank) const override {
    return chosen(key).program(key, numel, rank);
  }

 private:
  const Schedule& chosen(const RoundKey& key) const {
    const bool periodic = every_ > 0 && key.round % every_ == every_ - 1;
    return periodic || key.round < first_ ? *exact_ : *inner_;
  }

  const std::shared_ptr<const Schedule> inner_;
  const std::unique_ptr<const Schedule> exact_;
  const uint64_t every_;
  const uint64_t first_;
};

}  // namespace

std::unique_ptr<Schedule> exact_average_schedule(std::shared_ptr<const Schedule> inner,
                                                 uint64_t every, uint64_t first) {
  return std::make_unique<ExactAverageSchedule>(std::move(inner), every, first);
}

}  // namespace crossover
