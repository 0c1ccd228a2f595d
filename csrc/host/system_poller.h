// The Poller of real processes: poll(2) plus an eventfd for wake().
#pragma once

#include <memory>

#include "core/poller.h"

namespace crossover {

/// Throws TransportError if no eventfd can be had.
std::unique_ptr<Poller> system_poller();

}  // namespace crossover
