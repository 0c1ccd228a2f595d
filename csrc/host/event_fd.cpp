#include "host/event_fd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

#include "host/system_call.h"

namespace crossover {

EventFd::EventFd() : fd_(checked(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")) {}

EventFd::EventFd(UniqueFd fd) : fd_(std::move(fd)) {
  const int flags = checked(::fcntl(fd_.get(), F_GETFL), "flags of an eventfd");
  checked(::fcntl(fd_.get(), F_SETFL, flags | O_NONBLOCK), "flags of an eventfd");
}

// A write fails only when the counter is full, and a read only when it is empty: both are as good
// as done.
void EventFd::signal() const noexcept {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(fd_.get(), &one, sizeof(one));
}

void EventFd::drain() const noexcept {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t taken = ::read(fd_.get(), &count, sizeof(count));
}

}  // namespace crossover
