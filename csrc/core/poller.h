// Sleeping until a descriptor is ready, injected so that tests need neither threads nor time.
#pragma once

#include <span>

namespace crossover {

struct PollItem {
  int fd = -1;
  bool readable = true;
  bool writable = false;
};

class Poller {
 public:
  virtual ~Poller() = default;
  /// Returns when an item is ready, after `timeout_s`, or when woken. A wake() that came since the
  /// last wait ends this one at once.
  virtual void wait(std::span<const PollItem> items, double timeout_s) = 0;
  /// Ends the current or the next wait. Any thread.
  virtual void wake() noexcept = 0;
};

}  // namespace crossover
