// A Pipe over a connected TCP (or unix stream) socket.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/pipe.h"
#include "host/unique_fd.h"

namespace crossover {

/// Takes a connected, authenticated stream socket; sets it non-blocking and, for TCP, NODELAY;
/// one that leads to another host holds few bytes in the kernel that are not under way.
/// `label` names the peer in messages, e.g. "rank 3 (10.0.0.4:4711)". Throws TransportError if the
/// descriptor is no stream socket.
std::unique_ptr<Pipe> tcp_pipe(UniqueFd socket, std::string label);

}  // namespace crossover
