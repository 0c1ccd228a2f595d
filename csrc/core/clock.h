// Time, injected so that deadlines are testable.
#pragma once

#include <chrono>

namespace crossover {

/// Monotonic seconds since an arbitrary start.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual double now_s() const = 0;
};

/// The machine's monotonic clock.
class SteadyClock final : public Clock {
 public:
  double now_s() const override {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
};

}  // namespace crossover
