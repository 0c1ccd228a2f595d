#include "host/system_poller.h"

#include <poll.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "host/event_fd.h"

namespace crossover {
namespace {

constexpr double kLongestWaitS = 1e6;

timespec to_timespec(double seconds) {
  const double bounded = std::isnan(seconds) ? 0.0 : std::clamp(seconds, 0.0, kLongestWaitS);
  const double whole = std::floor(bounded);
  return {.tv_sec = static_cast<time_t>(whole),
          .tv_nsec = std::min(999'999'999L, std::lround((bounded - whole) * 1e9))};
}

class SystemPoller final : public Poller {
 public:
  void wait(std::span<const PollItem> items, double timeout_s) override {
    polled_.clear();
    polled_.push_back({.fd = wake_.get(), .events = POLLIN, .revents = 0});
    for (const PollItem& item : items) {
      const int events = (item.readable ? POLLIN : 0) | (item.writable ? POLLOUT : 0);
      polled_.push_back({.fd = item.fd, .events = static_cast<short>(events), .revents = 0});
    }
    const timespec timeout = to_timespec(timeout_s);
    const int ready = ::ppoll(polled_.data(), polled_.size(), &timeout, nullptr);
    if (ready > 0 && polled_.front().revents != 0) wake_.drain();
  }

  void wake() noexcept override { wake_.signal(); }

 private:
  EventFd wake_;
  std::vector<pollfd> polled_;  // kept, so that waiting allocates nothing
};

}  // namespace

std::unique_ptr<Poller> system_poller() { return std::make_unique<SystemPoller>(); }

}  // namespace crossover
