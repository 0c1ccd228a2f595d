#include "host/system_poller.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "host/event_fd.h"

namespace crossover {
namespace {

constexpr double kForEverS = 60.0;

double seconds_of(auto&& action) {
  const auto start = std::chrono::steady_clock::now();
  action();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(SystemPoller, AWakeBeforeTheWaitEndsItAtOnceAndOnlyOnce) {
  const auto poller = system_poller();
  poller->wake();
  poller->wake();
  EXPECT_LT(seconds_of([&] { poller->wait({}, kForEverS); }), kForEverS / 2);
  EXPECT_GE(seconds_of([&] { poller->wait({}, 0.002); }), 0.002);
}

TEST(SystemPoller, AWakeFromAnotherThreadEndsTheWait) {
  const auto poller = system_poller();
  std::jthread waker([&] { poller->wake(); });
  EXPECT_LT(seconds_of([&] { poller->wait({}, kForEverS); }), kForEverS / 2);
}

TEST(SystemPoller, AReadyDescriptorEndsTheWaitAndAnUnwantedOneDoesNot) {
  const auto poller = system_poller();
  EventFd event;
  const PollItem readable{.fd = event.get()};
  const PollItem writable{.fd = event.get(), .readable = false, .writable = true};
  EXPECT_GE(seconds_of([&] { poller->wait({&readable, 1}, 0.002); }), 0.002);
  EXPECT_LT(seconds_of([&] { poller->wait({&writable, 1}, kForEverS); }), kForEverS / 2);
  event.signal();
  EXPECT_LT(seconds_of([&] { poller->wait({&readable, 1}, kForEverS); }), kForEverS / 2);
}

TEST(SystemPoller, ATimeoutBelowAMillisecondIsNotRoundedUp) {
  const auto poller = system_poller();
  double shortest_s = kForEverS;
  for (int k = 0; k < 100; ++k) {
    shortest_s = std::min(shortest_s, seconds_of([&] { poller->wait({}, 1e-4); }));
  }
  EXPECT_GE(shortest_s, 1e-4);
  EXPECT_LT(shortest_s, 9e-4);
}

TEST(SystemPoller, ANegativeTimeoutDoesNotWait) {
  const auto poller = system_poller();
  EXPECT_LT(seconds_of([&] { poller->wait({}, -1.0); }), kForEverS / 2);
}

}  // namespace
}  // namespace crossover
