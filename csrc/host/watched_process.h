// A process whose end is noticed.
#pragma once

#include <string>

#include "host/unique_fd.h"

namespace crossover {

/// Another process, held by a pidfd.
class WatchedProcess {
 public:
  /// Throws TransportError if `pidfd` is none.
  explicit WatchedProcess(UniqueFd pidfd);

  /// Readable, in the sense of poll, once the process has ended.
  int get() const noexcept { return pidfd_.get(); }
  bool has_ended() const noexcept;
  /// "process 123".
  const std::string& name() const { return name_; }

 private:
  UniqueFd pidfd_;
  std::string name_;
};

}  // namespace crossover
