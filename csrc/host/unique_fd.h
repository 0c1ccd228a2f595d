// A file descriptor, owned, and closed in forked children.
#pragma once

#include <utility>

namespace crossover {

/// Owns a descriptor: closed on destruction, and in any forked child right after fork() (so that a
/// forked data worker never keeps a dead rank's sockets open).
class UniqueFd {
 public:
  UniqueFd() = default;
  /// Takes ownership of `fd` (-1: none) and registers it with the fork guard.
  explicit UniqueFd(int fd);
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset() noexcept;

 private:
  int fd_ = -1;
};

}  // namespace crossover
