// A file descriptor, owned, and closed in forked children.
#pragma once

#include <cstdint>
#include <utility>

namespace crossover {

/// Owns a descriptor: closed on destruction, and in any forked child right after fork() (so that a
/// forked data worker never keeps a dead rank's sockets open). In the child the object is empty:
/// the number may belong to somebody else by then.
class UniqueFd {
 public:
  UniqueFd() = default;
  /// Takes ownership of `fd` (-1: none) and registers it with the fork guard.
  explicit UniqueFd(int fd);
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), generation_(other.generation_) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
      generation_ = other.generation_;
    }
    return *this;
  }
  /// The descriptor; -1 if there is none, or if it was the parent's.
  int get() const noexcept;
  explicit operator bool() const noexcept { return get() >= 0; }
  void reset() noexcept;

 private:
  int fd_ = -1;
  uint64_t generation_ = 0;  // of the process that owns it
};

}  // namespace crossover
