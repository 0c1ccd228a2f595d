#include "bench/ranks.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>

#include "core/error.h"
#include "host/shared_memory_pipe.h"
#include "host/system_call.h"
#include "host/tcp_pipe.h"

namespace crossover::bench {
namespace {

constexpr auto kJoinTimeout = std::chrono::seconds(30);
constexpr auto kConnectPause = std::chrono::milliseconds(50);

void send_all(int fd, const void* data, size_t num_bytes) {
  const char* at = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const int sent = checked(static_cast<int>(::send(fd, at, num_bytes, MSG_NOSIGNAL)), "send");
    at += sent;
    num_bytes -= static_cast<size_t>(sent);
  }
}

void receive_all(int fd, void* data, size_t num_bytes) {
  char* at = static_cast<char*>(data);
  while (num_bytes > 0) {
    const int got = checked(static_cast<int>(::recv(fd, at, num_bytes, MSG_WAITALL)), "recv");
    if (got == 0) throw TransportError("a rank of the benchmark has ended early");
    at += got;
    num_bytes -= static_cast<size_t>(got);
  }
}

// --- ranks of one host: every descriptor is made before the fork. UniqueFd closes itself in forked
// children, so they are plain numbers until a rank has taken its own.

struct Listener {
  UniqueFd socket;
  sockaddr_in address{};
};

Listener listen_on(in_addr_t address, int backlog) {
  Listener made{UniqueFd(checked(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"))};
  made.address.sin_family = AF_INET;
  made.address.sin_addr.s_addr = address;
  auto* raw = reinterpret_cast<sockaddr*>(&made.address);
  socklen_t length = sizeof made.address;
  checked(::bind(made.socket.get(), raw, length), "bind");
  checked(::listen(made.socket.get(), backlog), "listen");
  checked(::getsockname(made.socket.get(), raw, &length), "getsockname");
  return made;
}

/// What two ranks share: both ends of a connection, or the descriptors of a channel.
struct Link {
  std::vector<int> fds;
};

Link make_link(Medium medium) {
  if (medium == Medium::kSharedMemory) {
    const SharedMemoryChannel channel = create_shared_memory_channel();
    Link link;
    for (const UniqueFd* fd : {&channel.memory, &channel.wake_0, &channel.wake_1}) {
      link.fds.push_back(checked(::dup(fd->get()), "dup"));
    }
    return link;
  }
  const Listener listener = listen_on(htonl(INADDR_LOOPBACK), 1);
  const int near = checked(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  checked(::connect(near, reinterpret_cast<const sockaddr*>(&listener.address),
                    sizeof listener.address),
          "connect");
  return {{near, checked(::accept(listener.socket.get(), nullptr, nullptr), "accept")}};
}

std::unique_ptr<Pipe> open_end(const Link& link, int side, pid_t peer, int peer_rank) {
  const std::string label = "rank " + std::to_string(peer_rank);
  if (link.fds.size() == 2) {
    ::close(link.fds[1 - side]);
    return tcp_pipe(UniqueFd(link.fds[side]), label);
  }
  SharedMemoryChannel channel{UniqueFd(link.fds[0]), UniqueFd(link.fds[1]), UniqueFd(link.fds[2])};
  UniqueFd process(checked(static_cast<int>(::syscall(SYS_pidfd_open, peer, 0)), "pidfd_open"));
  return shared_memory_pipe(std::move(channel), side, std::move(process), label);
}

/// Everything that the parent prepares: links[i][j] for i < j, and a control socket pair per rank.
struct Prepared {
  std::vector<std::vector<Link>> links;
  std::vector<std::array<int, 2>> control;
  std::vector<std::array<int, 2>> start;  // the parent tells each rank everybody's process
};

Prepared prepare(int size, Medium medium) {
  Prepared made;
  made.links.resize(size);
  made.control.resize(size);
  made.start.resize(size);
  for (int i = 0; i < size; ++i) {
    made.links[i].resize(size);
    for (int j = i + 1; j < size; ++j) made.links[i][j] = make_link(medium);
    checked(::socketpair(AF_UNIX, SOCK_STREAM, 0, made.control[i].data()), "socketpair");
    checked(::socketpair(AF_UNIX, SOCK_STREAM, 0, made.start[i].data()), "socketpair");
  }
  return made;
}

Rank take_own(const Prepared& prepared, int rank, int size) {
  std::vector<pid_t> processes(size);
  receive_all(prepared.start[rank][1], processes.data(), processes.size() * sizeof(pid_t));
  Rank own{rank, size, {}, {}};
  own.pipes.resize(size);
  own.control.resize(size);
  for (int peer = 0; peer < size; ++peer) {
    if (peer == rank) continue;
    const bool first = rank < peer;
    const Link& link = first ? prepared.links[rank][peer] : prepared.links[peer][rank];
    own.pipes[peer] = open_end(link, first ? 0 : 1, processes[peer], peer);
    if (rank == 0) own.control[peer] = UniqueFd(prepared.control[peer][0]);
  }
  if (rank != 0) own.control[0] = UniqueFd(prepared.control[rank][1]);
  return own;
}

[[noreturn]] void run_child(const Prepared& prepared, int rank, int size,
                            const std::function<void(Rank)>& body) {
  int code = 0;
  try {
    body(take_own(prepared, rank, size));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
    code = 1;
  }
  std::fflush(nullptr);
  ::_exit(code);
}

int await_all(const std::vector<pid_t>& processes) {
  int code = 0;
  for (size_t left = processes.size(); left > 0; --left) {
    int status = 0;
    checked(::wait(&status), "wait");
    if (status == 0 || code != 0) continue;
    code = 1;
    for (const pid_t process : processes) ::kill(process, SIGKILL);
  }
  return code;
}

// --- ranks of several hosts

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

int number_in(const char* name) {
  const char* text = variable(name);
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end != '\0' || value < 0 || value > 65535) {
    throw InvalidArgument(std::string(name) + ": expected a number in 0 .. 65535, got '" + text +
                          "'");
  }
  return static_cast<int>(value);
}

sockaddr_in resolve(const char* host, int port) {
  addrinfo hints{};
  hints.ai_family = AF_INET;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host, nullptr, &hints, &found) != 0) {
    throw InvalidArgument("MASTER_ADDR: no IPv4 address for '" + std::string(host) + "'");
  }
  sockaddr_in address = *reinterpret_cast<sockaddr_in*>(found->ai_addr);
  ::freeaddrinfo(found);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

UniqueFd connect_to(const sockaddr_in& address) {
  const auto deadline = std::chrono::steady_clock::now() + kJoinTimeout;
  for (;;) {
    UniqueFd socket(checked(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) {
      return socket;
    }
    if (std::chrono::steady_clock::now() > deadline) checked(-1, "connect");
    std::this_thread::sleep_for(kConnectPause);  // the other end may not listen yet
  }
}

UniqueFd accept_one(int listener) {
  timeval wait{.tv_sec = std::chrono::seconds(kJoinTimeout).count(), .tv_usec = 0};
  checked(::setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait), "setsockopt");
  return UniqueFd(checked(::accept(listener, nullptr, nullptr), "accept"));
}

struct Arrival {
  int32_t rank;
  uint32_t port;  // network order in the low half: where the rank listens for its peers
};

/// Where every rank listens, learnt through rank 0; fills rank 0's and this rank's control sockets.
std::vector<sockaddr_in> exchange_addresses(Rank& own, const Listener& listener) {
  std::vector<sockaddr_in> addresses(own.size);
  const sockaddr_in master = resolve(variable("MASTER_ADDR"), number_in("MASTER_PORT"));
  const size_t bytes = addresses.size() * sizeof(sockaddr_in);
  if (own.rank != 0) {
    own.control[0] = connect_to(master);
    const Arrival arrival{own.rank, listener.address.sin_port};
    send_all(own.control[0].get(), &arrival, sizeof arrival);
    receive_all(own.control[0].get(), addresses.data(), bytes);
    return addresses;
  }
  UniqueFd door(checked(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
  const int yes = 1;
  checked(::setsockopt(door.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes), "setsockopt");
  checked(::bind(door.get(), reinterpret_cast<const sockaddr*>(&master), sizeof master), "bind");
  checked(::listen(door.get(), own.size), "listen");
  addresses[0] = master;
  addresses[0].sin_port = listener.address.sin_port;
  for (int i = 1; i < own.size; ++i) {
    UniqueFd arrived = accept_one(door.get());
    Arrival arrival{};
    receive_all(arrived.get(), &arrival, sizeof arrival);
    socklen_t length = sizeof(sockaddr_in);
    auto* address = reinterpret_cast<sockaddr*>(&addresses.at(arrival.rank));
    checked(::getpeername(arrived.get(), address, &length), "getpeername");
    addresses[arrival.rank].sin_port = static_cast<in_port_t>(arrival.port);
    own.control[arrival.rank] = std::move(arrived);
  }
  for (int i = 1; i < own.size; ++i) send_all(own.control[i].get(), addresses.data(), bytes);
  return addresses;
}

}  // namespace

int run_forked(int size, Medium medium, const std::function<void(Rank)>& body) {
  const Prepared prepared = prepare(size, medium);
  std::vector<pid_t> processes;
  for (int rank = 0; rank < size; ++rank) {
    const pid_t process = checked(::fork(), "fork");
    if (process == 0) run_child(prepared, rank, size, body);
    processes.push_back(process);
  }
  for (const auto& start : prepared.start) {
    send_all(start[0], processes.data(), processes.size() * sizeof(pid_t));
  }
  return await_all(processes);
}

bool launched() {
  return variable("RANK") && variable("WORLD_SIZE") && variable("MASTER_ADDR") &&
         variable("MASTER_PORT");
}

Rank join_launched() {
  Rank own{number_in("RANK"), number_in("WORLD_SIZE"), {}, {}};
  own.pipes.resize(own.size);
  own.control.resize(own.size);
  const Listener listener = listen_on(htonl(INADDR_ANY), own.size);
  const std::vector<sockaddr_in> addresses = exchange_addresses(own, listener);
  for (int peer = 0; peer < own.rank; ++peer) {
    UniqueFd socket = connect_to(addresses[peer]);
    send_all(socket.get(), &own.rank, sizeof own.rank);
    own.pipes[peer] = tcp_pipe(std::move(socket), "rank " + std::to_string(peer));
  }
  for (int i = own.rank + 1; i < own.size; ++i) {
    UniqueFd socket = accept_one(listener.socket.get());
    int peer = 0;
    receive_all(socket.get(), &peer, sizeof peer);
    own.pipes.at(peer) = tcp_pipe(std::move(socket), "rank " + std::to_string(peer));
  }
  return own;
}

std::vector<double> gather(const Rank& rank, const std::vector<double>& own) {
  const size_t bytes = own.size() * sizeof(double);
  if (rank.rank != 0) {
    send_all(rank.control[0].get(), own.data(), bytes);
    return {};
  }
  std::vector<double> all = own;
  all.resize(own.size() * static_cast<size_t>(rank.size));
  for (int peer = 1; peer < rank.size; ++peer) {
    receive_all(rank.control[peer].get(), all.data() + own.size() * static_cast<size_t>(peer),
                bytes);
  }
  return all;
}

void barrier(const Rank& rank) {
  gather(rank, {0.0});
  char go = 0;
  for (int peer = 1; rank.rank == 0 && peer < rank.size; ++peer) {
    send_all(rank.control[peer].get(), &go, 1);
  }
  if (rank.rank != 0) receive_all(rank.control[0].get(), &go, 1);
}

}  // namespace crossover::bench
