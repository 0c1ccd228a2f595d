// Time, injected so that deadlines are testable.
#pragma once

#include <array>
#include <chrono>
#include <cstdio>
#include <string>

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

/// "3.07 s", "1800 s": for messages.
inline std::string spell_seconds(double value_s) {
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%.2f", value_s);
  std::string text = buffer.data();
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text + " s";
}

}  // namespace crossover
