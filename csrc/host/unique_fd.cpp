#include "host/unique_fd.h"

#include "host/fork_guard.h"

namespace crossover {

UniqueFd::UniqueFd(int fd) : fd_(fd), generation_(fork_guard::generation()) {
  if (fd_ >= 0) fork_guard::guard(fd_);
}

int UniqueFd::get() const noexcept { return generation_ == fork_guard::generation() ? fd_ : -1; }

void UniqueFd::reset() noexcept {
  if (get() >= 0) fork_guard::close_guarded(fd_);
  fd_ = -1;
}

}  // namespace crossover
