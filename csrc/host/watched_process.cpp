#include "host/watched_process.h"

#include <poll.h>

#include <fstream>

#include "core/error.h"

namespace crossover {
namespace {

// The kernel tells the id only while the process lives.
std::string name_of(int pidfd) {
  std::ifstream info("/proc/self/fdinfo/" + std::to_string(pidfd));
  for (std::string line; std::getline(info, line);) {
    constexpr std::string_view kKey = "Pid:\t";
    if (line.starts_with(kKey)) return "process " + line.substr(kKey.size());
  }
  throw TransportError("descriptor " + std::to_string(pidfd) + " is no pidfd");
}

}  // namespace

WatchedProcess::WatchedProcess(UniqueFd pidfd)
    : pidfd_(std::move(pidfd)), name_(name_of(pidfd_.get())) {}

bool WatchedProcess::has_ended() const noexcept {
  pollfd polled{.fd = pidfd_.get(), .events = POLLIN, .revents = 0};
  return ::poll(&polled, 1, 0) > 0;
}

}  // namespace crossover
