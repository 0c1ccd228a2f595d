// An eventfd: wakes whoever polls it.
#pragma once

#include "host/unique_fd.h"

namespace crossover {

/// A non-blocking eventfd, ready to be read from signal() until drain().
class EventFd {
 public:
  /// Makes a new one. Throws TransportError if the system refuses.
  EventFd();
  /// Takes one over, e.g. from another process; it is set non-blocking. Throws TransportError if
  /// that fails.
  explicit EventFd(UniqueFd fd);

  int get() const noexcept { return fd_.get(); }
  /// Any thread.
  void signal() const noexcept;
  void drain() const noexcept;
  /// Gives the descriptor away.
  UniqueFd take() && { return std::move(fd_); }

 private:
  UniqueFd fd_;
};

}  // namespace crossover
