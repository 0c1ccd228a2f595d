#include "host/fork_guard.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace crossover::fork_guard {
namespace {

std::atomic<uint64_t> current_generation{0};

// The mutex is held across fork(), so the child finds the tables whole. Nothing is allocated or
// freed in the child.
struct Registry {
  std::mutex mutex;
  std::vector<int> descriptors;
  std::vector<std::pair<int, std::function<void()>>> actions;
  int next_action = 0;
};

Registry& registry() noexcept;

void before_fork() { registry().mutex.lock(); }

void after_fork_in_parent() { registry().mutex.unlock(); }

void after_fork_in_child() {
  Registry& tables = registry();
  for (int fd : tables.descriptors) ::close(fd);
  tables.descriptors.clear();
  current_generation.fetch_add(1, std::memory_order_relaxed);
  for (auto& [id, action] : tables.actions) action();
  tables.mutex.unlock();
}

Registry* install() noexcept {
  auto* const tables = new (std::nothrow) Registry;
  if (!tables || pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
    std::fputs("crossover_comm: no memory for the fork handler\n", stderr);
    std::abort();
  }
  return tables;
}

// Never destroyed: descriptors may outlive static destruction, and forks may happen during it.
Registry& registry() noexcept {
  static Registry* const tables = install();
  return *tables;
}

// Made when the library is loaded: a fork while another thread is making it would leave the child
// waiting for that thread for ever.
[[maybe_unused]] const Registry& made_at_load = registry();

}  // namespace

void guard(int fd) {
  Registry& tables = registry();
  std::scoped_lock lock(tables.mutex);
  tables.descriptors.push_back(fd);
}

void close_guarded(int fd) noexcept {
  Registry& tables = registry();
  std::scoped_lock lock(tables.mutex);
  auto at = std::find(tables.descriptors.begin(), tables.descriptors.end(), fd);
  if (at != tables.descriptors.end()) {
    *at = tables.descriptors.back();
    tables.descriptors.pop_back();
  }
  ::close(fd);
}

int add_child_action(std::function<void()> action) {
  Registry& tables = registry();
  std::scoped_lock lock(tables.mutex);
  tables.actions.emplace_back(tables.next_action, std::move(action));
  return tables.next_action++;
}

void remove_child_action(int id) noexcept {
  Registry& tables = registry();
  std::scoped_lock lock(tables.mutex);
  std::erase_if(tables.actions, [id](const auto& entry) { return entry.first == id; });
}

uint64_t generation() noexcept { return current_generation.load(std::memory_order_relaxed); }

}  // namespace crossover::fork_guard
