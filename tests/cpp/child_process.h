// Real processes for tests, by fork().
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <utility>

namespace crossover::testing {

/// A forked child that runs `body` and exits with what it returns; killed at the end of its scope.
class ChildProcess {
 public:
  explicit ChildProcess(const std::function<int()>& body) : id_(::fork()) {
    if (id_ == 0) ::_exit(body());
  }
  ~ChildProcess() {
    if (id_ <= 0) return;
    kill();
    wait();
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t id() const { return id_; }
  void kill() const { ::kill(id_, SIGKILL); }
  /// The exit status as of waitpid; once.
  int wait() {
    int status = -1;
    ::waitpid(std::exchange(id_, -1), &status, 0);
    return status;
  }
  int exit_code() {
    const int status = wait();
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t id_;
};

/// One end waits until the other has called open(). Plain descriptors: both processes keep them.
class Gate {
 public:
  Gate() { EXPECT_EQ(::pipe(ends_), 0); }
  ~Gate() {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  void open() const { EXPECT_EQ(::write(ends_[1], "o", 1), 1); }
  void pass() const {
    char letter = 0;
    EXPECT_EQ(::read(ends_[0], &letter, 1), 1);
  }

 private:
  int ends_[2];
};

}  // namespace crossover::testing
