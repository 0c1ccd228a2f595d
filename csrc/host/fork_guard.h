// What must happen in a forked child: every descriptor of ours is closed, every engine is marked
// dead. Holds the library's one piece of global state.
#pragma once

#include <cstdint>
#include <functional>

namespace crossover::fork_guard {

/// Registers a descriptor to be closed in children. A child forked between the descriptor's birth
/// and this call keeps it. Any thread.
void guard(int fd);
/// Closes a guarded descriptor, so that no child can be forked between the two halves. Any thread.
void close_guarded(int fd) noexcept;

/// Runs `action` in every child (async-signal-safe work only, no call into the fork guard); returns
/// an id for remove_child_action. Any thread.
int add_child_action(std::function<void()> action);
void remove_child_action(int id) noexcept;

/// How many forks lie between the first process and this one. What was made in an older generation
/// belongs to the parent: a child must neither use nor free it.
uint64_t generation() noexcept;

}  // namespace crossover::fork_guard
