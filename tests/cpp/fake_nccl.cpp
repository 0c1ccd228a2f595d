#include "fake_nccl.h"

#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cuda/nccl_abi.h"

#define FAKE_NCCL_EXPORT extern "C" __attribute__((visibility("default")))

namespace nccl = crossover::nccl;

struct Transfer {
  bool is_send = false;
  int peer = 0;
  void* data = nullptr;
  size_t num_bytes = 0;
  bool done = false;
};

struct Group {
  nccl::Communicator* owner = nullptr;
  uintptr_t stream = 0;
  std::vector<Transfer> transfers;
  bool stuck = false;
};

struct crossover::nccl::Communicator {
  std::string world;
  int rank = 0;
  int size = 0;
  int polls_left = 0;  // that say in progress
  bool busy = false;   // the last call has not been polled to its end
  bool failed = false;
  int num_groups = 0;
  std::optional<Group> launching;  // reaches its stream at the last poll
};

namespace {

using nccl::Communicator;
using nccl::Result;

constexpr int kForEver = 1 << 30;

struct Stream {
  std::deque<Group> groups;
  uint64_t enqueued = 0;
  uint64_t completed = 0;
};

class World {
 public:
  World() {
    const char* text = std::getenv("CROSSOVER_FAKE_NCCL");
    read_script(text ? text : "");
  }

  void read_script(const std::string& text) {
    script_.clear();
    std::istringstream stream(text);
    for (std::string entry; std::getline(stream, entry, ';');) {
      const size_t equals = entry.find('=');
      if (equals != std::string::npos) {
        script_[entry.substr(0, equals)] = std::atoi(entry.c_str() + equals + 1);
      }
    }
    ++generation;
    changed.notify_all();
  }
  int value(const std::string& key, int otherwise) const {
    const auto found = script_.find(key);
    return found == script_.end() ? otherwise : found->second;
  }
  bool concerns(const std::string& key, const Communicator& communicator) const {
    const int rank = value("rank", communicator.rank);
    return rank == communicator.rank && value(key, -1) == communicator.num_groups;
  }

  void enqueue(Communicator& communicator) {
    if (!communicator.launching) return;
    Stream& stream = streams[communicator.launching->stream];
    stream.groups.push_back(*std::exchange(communicator.launching, std::nullopt));
    ++stream.enqueued;
  }
  void run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (auto& [id, stream] : streams) moved = run(id, stream) || moved;
    }
  }
  void drop(Communicator* communicator) {
    for (auto& [id, stream] : streams) {
      stream.completed += std::erase_if(
          stream.groups, [&](const Group& group) { return group.owner == communicator; });
    }
    std::erase(members[communicator->world], communicator);
  }

  std::mutex mutex;
  std::condition_variable changed;
  uint64_t generation = 0;
  uint64_t next_id = 1;
  bool (*may_begin)(uintptr_t, uint64_t) = nullptr;
  std::map<uintptr_t, Stream> streams;
  std::map<std::string, std::vector<Communicator*>> members;
  std::vector<std::unique_ptr<Communicator>> all;  // kept: a stale handle must not be reused

 private:
  bool runs(uintptr_t id, const Stream& stream) const {
    return !stream.groups.empty() && (!may_begin || may_begin(id, stream.completed + 1));
  }

  bool run(uintptr_t stream_id, Stream& stream) {
    if (!runs(stream_id, stream)) return false;
    Group& group = stream.groups.front();
    for (Transfer& send : group.transfers) {
      if (send.is_send && !send.done) match(group, send);
    }
    const bool done = std::all_of(group.transfers.begin(), group.transfers.end(),
                                  [](const Transfer& transfer) { return transfer.done; });
    if (!done || group.stuck) return false;
    stream.groups.pop_front();
    ++stream.completed;
    return true;
  }

  // A send meets the first receive for it among the groups that run.
  void match(const Group& from, Transfer& send) {
    for (auto& [id, stream] : streams) {
      if (stream.groups.empty()) continue;
      Group& to = stream.groups.front();
      if (to.owner->world != from.owner->world || to.owner->rank != send.peer) continue;
      if (!runs(id, stream)) continue;
      for (Transfer& receive : to.transfers) {
        if (receive.is_send || receive.done || receive.peer != from.owner->rank) continue;
        if (receive.num_bytes != send.num_bytes) return;
        std::memcpy(receive.data, send.data, send.num_bytes);
        receive.done = send.done = true;
        return;
      }
    }
  }

  std::map<std::string, int> script_;
};

World& world() {
  static World* const instance = new World;  // outlives hung threads
  return *instance;
}

thread_local std::optional<Group> open_group;

bool usable(const Communicator* communicator) {
  return communicator && !communicator->busy && !communicator->failed;
}

Result begin(Communicator& communicator) {
  communicator.busy = true;
  communicator.polls_left = world().value("in_progress", 0);
  return nccl::kInProgress;
}

Result add_transfer(const Transfer& transfer, Communicator* communicator, void* stream) {
  const std::lock_guard lock(world().mutex);
  if (!open_group || !usable(communicator)) return nccl::kInvalidUsage;
  open_group->owner = communicator;
  open_group->stream = reinterpret_cast<uintptr_t>(stream);
  open_group->transfers.push_back(transfer);
  return nccl::kSuccess;
}

Result end_communicator(Communicator* communicator) {
  std::unique_lock lock(world().mutex);
  world().drop(communicator);
  if (world().value("hang_end", 0) != 0) {
    const uint64_t before = world().generation;
    world().changed.wait(lock, [before] { return world().generation != before; });
  }
  return nccl::kSuccess;
}

}  // namespace

FAKE_NCCL_EXPORT void fake_nccl_script(const char* text) {
  const std::lock_guard lock(world().mutex);
  world().read_script(text);
}

FAKE_NCCL_EXPORT uint64_t fake_nccl_enqueued(uintptr_t stream) {
  const std::lock_guard lock(world().mutex);
  return world().streams[stream].enqueued;
}

FAKE_NCCL_EXPORT uint64_t fake_nccl_completed(uintptr_t stream) {
  const std::lock_guard lock(world().mutex);
  world().run();
  return world().streams[stream].completed;
}

FAKE_NCCL_EXPORT void fake_nccl_begin_when(bool (*may_begin)(uintptr_t, uint64_t)) {
  const std::lock_guard lock(world().mutex);
  world().may_begin = may_begin;
}

FAKE_NCCL_EXPORT int fake_nccl_standing() {
  const std::lock_guard lock(world().mutex);
  size_t standing = 0;
  for (const auto& [name, members] : world().members) standing += members.size();
  return static_cast<int>(standing);
}

FAKE_NCCL_EXPORT Result ncclGetVersion(int* version) {
  const std::lock_guard lock(world().mutex);
  *version = world().value("version", nccl::version_code(2, 28, 9));
  return nccl::kSuccess;
}

FAKE_NCCL_EXPORT Result ncclGetUniqueId(nccl::UniqueId* id) {
  const std::lock_guard lock(world().mutex);
  std::memset(id->internal, 0, sizeof(id->internal));
  std::memcpy(id->internal, &world().next_id, sizeof(world().next_id));
  ++world().next_id;
  return nccl::kSuccess;
}

FAKE_NCCL_EXPORT const char* ncclGetErrorString(Result result) {
  switch (result) {
    case nccl::kInvalidArgument:
      return "invalid argument";
    case nccl::kInvalidUsage:
      return "invalid usage";
    case nccl::kRemoteError:
      return "remote process exited or there was a network error";
    default:
      return "other error";
  }
}

FAKE_NCCL_EXPORT const char* ncclGetLastError(Communicator*) { return "as scripted"; }

FAKE_NCCL_EXPORT Result ncclCommInitRankConfig(Communicator** communicator, int num_ranks,
                                               nccl::UniqueId id, int rank, nccl::Config* config) {
  const bool known = config->magic == nccl::kConfigMagic && config->size == sizeof(nccl::Config);
  if (!known || config->blocking != 0) return nccl::kInvalidArgument;
  const std::lock_guard lock(world().mutex);
  auto made = std::make_unique<Communicator>();
  made->world.assign(id.internal, sizeof(id.internal));
  made->rank = rank;
  made->size = num_ranks;
  *communicator = made.get();
  world().members[made->world].push_back(made.get());
  world().all.push_back(std::move(made));
  return begin(**communicator);
}

FAKE_NCCL_EXPORT Result ncclCommGetAsyncError(Communicator* communicator, Result* error) {
  const std::lock_guard lock(world().mutex);
  world().run();
  const size_t present = world().members[communicator->world].size();
  const bool connecting =
      communicator->num_groups == 0 && present < static_cast<size_t>(communicator->size);
  if (communicator->busy && !connecting && communicator->polls_left-- <= 0) {
    communicator->busy = false;
    world().enqueue(*communicator);
  }
  *error = communicator->busy     ? nccl::kInProgress
           : communicator->failed ? nccl::kRemoteError
                                  : nccl::kSuccess;
  return nccl::kSuccess;
}

FAKE_NCCL_EXPORT Result ncclCommFinalize(Communicator* communicator) {
  const std::lock_guard lock(world().mutex);
  return usable(communicator) ? begin(*communicator) : nccl::kInvalidUsage;
}

FAKE_NCCL_EXPORT Result ncclCommDestroy(Communicator* communicator) {
  return end_communicator(communicator);
}

FAKE_NCCL_EXPORT Result ncclCommAbort(Communicator* communicator) {
  return end_communicator(communicator);
}

FAKE_NCCL_EXPORT Result ncclGroupStart() {
  open_group.emplace();
  return nccl::kSuccess;
}

FAKE_NCCL_EXPORT Result ncclGroupEnd() {
  const std::lock_guard lock(world().mutex);
  std::optional<Group> group = std::exchange(open_group, std::nullopt);
  if (!group || !group->owner) return nccl::kSuccess;
  Communicator& owner = *group->owner;
  begin(owner);
  if (world().concerns("stuck_call", owner)) owner.polls_left = kForEver;
  owner.failed = world().concerns("failing_group", owner);
  group->stuck = world().concerns("stuck_group", owner);
  owner.launching = std::move(group);
  ++owner.num_groups;
  return nccl::kInProgress;
}

#ifndef FAKE_NCCL_WITHOUT_SEND
FAKE_NCCL_EXPORT Result ncclSend(const void* data, size_t count, nccl::DataType, int peer,
                                 Communicator* communicator, nccl::Stream stream) {
  return add_transfer({true, peer, const_cast<void*>(data), count}, communicator, stream);
}
#endif

FAKE_NCCL_EXPORT Result ncclRecv(void* data, size_t count, nccl::DataType, int peer,
                                 Communicator* communicator, nccl::Stream stream) {
  return add_transfer({false, peer, data, count}, communicator, stream);
}
