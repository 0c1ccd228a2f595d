// What must happen in a forked child: every descriptor of ours is closed, every engine is marked
// dead. Holds the library's one piece of global state.
#pragma once

#include <functional>

namespace crossover::fork_guard {

/// Registers a descriptor to be closed in children; forget() when it is closed here.
void guard(int fd);
void forget(int fd) noexcept;

/// Runs `action` in every child (async-signal-safe work only); returns an id for remove_action.
int add_child_action(std::function<void()> action);
void remove_child_action(int id) noexcept;

}  // namespace crossover::fork_guard
