#include "host/tcp_pipe.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "core/error.h"
#include "host/mapped_memory.h"
#include "host/system_call.h"

namespace crossover {
namespace {

constexpr size_t kStagingBytes = size_t{512} << 10;
constexpr int kMaxUnsentBytes = 256 << 10;  // in the kernel, of a socket that crosses the network

bool would_block(int error_number) {
  return error_number == EAGAIN || error_number == EWOULDBLOCK || error_number == EINTR;
}

std::string socket_failure(int error_number) {
  switch (error_number) {
    case ECONNRESET:
      return "reset by peer";
    case EPIPE:
      return "connection closed while sending";
    default:
      return "connection failed: " + error_text(error_number);
  }
}

int socket_option(int fd, int option) {
  int value = 0;
  socklen_t size = sizeof(value);
  checked(::getsockopt(fd, SOL_SOCKET, option, &value, &size), "not a socket");
  return value;
}

/// False for unix sockets and within a host's loopback.
bool leads_into_network(int fd) {
  sockaddr_storage peer{};
  socklen_t size = sizeof(peer);
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) return false;
  if (peer.ss_family == AF_INET) {
    const auto& address = reinterpret_cast<const sockaddr_in&>(peer).sin_addr;
    return (ntohl(address.s_addr) >> IN_CLASSA_NSHIFT) != IN_LOOPBACKNET;
  }
  if (peer.ss_family != AF_INET6) return false;
  const auto& address = reinterpret_cast<const sockaddr_in6&>(peer).sin6_addr;
  return !IN6_IS_ADDR_LOOPBACK(&address);
}

class TcpPipe final : public Pipe {
 public:
  TcpPipe(UniqueFd socket, bool crosses_network, std::string description)
      : socket_(std::move(socket)),
        crosses_network_(crosses_network),
        description_(std::move(description)) {}

  std::span<std::byte> write_window() override;
  void commit(size_t num_bytes) override;
  bool flush() override;
  bool drained() const override;
  void finish_writing() override;

  bool fill() override;
  std::span<const std::byte> read_window() override { return incoming_.content(); }
  void release(size_t num_bytes) override;
  size_t min_capacity() const override { return incoming_.capacity_bytes(); }

  bool ended() const override { return ended_; }
  std::string end_reason() const override { return end_reason_; }
  bool prepare_to_sleep(bool want_write, std::vector<PollItem>& items) override;
  bool crosses_network() const override { return crosses_network_; }
  size_t bytes_before_link() const override;
  std::string describe() const override { return description_; }

 private:
  // In this order; a failure leads to kBroken from anywhere.
  enum class WriteSide { kOpen, kFinishing /* bytes are left to be sent */, kShut, kBroken };

  void shut_when_sent();
  void break_writing(int error_number);
  void end(std::string reason);

  UniqueFd socket_;
  const bool crosses_network_;
  std::string description_;
  ByteQueue outgoing_{kStagingBytes};
  ByteQueue incoming_{kStagingBytes};
  WriteSide write_side_ = WriteSide::kOpen;
  std::string write_failure_;
  bool ended_ = false;
  std::string end_reason_;
};

std::span<std::byte> TcpPipe::write_window() {
  if (write_side_ != WriteSide::kOpen) return {};
  if (outgoing_.room_bytes() < outgoing_.capacity_bytes() / 4) return {};
  return outgoing_.room();
}

void TcpPipe::commit(size_t num_bytes) {
  check(num_bytes <= outgoing_.room_bytes(), "commit within the write window");
  outgoing_.push(num_bytes);
}

bool TcpPipe::flush() {
  bool moved = false;
  while (outgoing_.size_bytes() > 0) {
    const std::span<const std::byte> bytes = outgoing_.content();
    const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0) {
      if (!would_block(errno)) break_writing(errno);
      break;
    }
    outgoing_.pop(static_cast<size_t>(sent));
    moved = true;
  }
  shut_when_sent();
  return moved;
}

void TcpPipe::shut_when_sent() {
  if (write_side_ != WriteSide::kFinishing || outgoing_.size_bytes() > 0) return;
  write_side_ = WriteSide::kShut;
  if (::shutdown(socket_.get(), SHUT_WR) != 0) break_writing(errno);
}

// What the peer sent before can still be read: fill() ends the pipe when it finds nothing.
void TcpPipe::break_writing(int error_number) {
  write_side_ = WriteSide::kBroken;
  write_failure_ = socket_failure(error_number);
  outgoing_.clear();
}

// A socket with as much in flight as its congestion window allows waits for acknowledgements.
size_t TcpPipe::bytes_before_link() const {
  if (!crosses_network_) return 0;
  tcp_info info{};
  socklen_t size = sizeof(info);
  int unsent_bytes = 0;
  if (::getsockopt(socket_.get(), IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return 0;
  if (::ioctl(socket_.get(), SIOCOUTQNSD, &unsent_bytes) != 0) return 0;
  const uint32_t in_flight =
      info.tcpi_unacked - info.tcpi_sacked - info.tcpi_lost + info.tcpi_retrans;
  if (in_flight >= info.tcpi_snd_cwnd) return 0;
  return outgoing_.size_bytes() + static_cast<size_t>(unsent_bytes);
}

bool TcpPipe::drained() const {
  if (write_side_ == WriteSide::kBroken) return true;
  if (outgoing_.size_bytes() > 0) return false;
  int unacknowledged = 0;
  return ::ioctl(socket_.get(), SIOCOUTQ, &unacknowledged) != 0 || unacknowledged == 0;
}

void TcpPipe::finish_writing() {
  if (write_side_ != WriteSide::kOpen) return;
  write_side_ = WriteSide::kFinishing;
  shut_when_sent();
}

bool TcpPipe::fill() {
  if (ended_) return false;
  bool grew = false;
  while (!ended_ && incoming_.room_bytes() > 0) {
    const std::span<std::byte> room = incoming_.room();
    const ssize_t received = ::recv(socket_.get(), room.data(), room.size(), 0);
    if (received > 0) {
      incoming_.push(static_cast<size_t>(received));
      grew = true;
      if (static_cast<size_t>(received) < room.size()) break;
    } else if (received == 0) {
      end("connection closed");
    } else if (!would_block(errno)) {
      break_writing(errno);
      end(write_failure_);
    } else {
      if (write_side_ == WriteSide::kBroken) end(write_failure_);
      break;
    }
  }
  return grew || ended_;
}

void TcpPipe::end(std::string reason) {
  ended_ = true;
  end_reason_ = write_failure_.empty() ? std::move(reason) : write_failure_;
}

void TcpPipe::release(size_t num_bytes) {
  check(num_bytes <= incoming_.size_bytes(), "release within the read window");
  incoming_.pop(num_bytes);
}

// An ended socket stays readable and a full window takes nothing: polling either would never sleep.
bool TcpPipe::prepare_to_sleep(bool want_write, std::vector<PollItem>& items) {
  if (want_write && !write_window().empty()) return false;
  const bool can_read = !ended_ && incoming_.room_bytes() > 0;
  if (can_read && write_side_ == WriteSide::kBroken) return false;
  pollfd now{.fd = socket_.get(), .events = POLLIN, .revents = 0};
  if (can_read && ::poll(&now, 1, 0) > 0) return false;
  const bool can_write = outgoing_.size_bytes() > 0 || bytes_before_link() >= kMaxUnsentBytes / 2;
  if (can_read || can_write) {
    items.push_back({.fd = socket_.get(), .readable = can_read, .writable = can_write});
  }
  return true;
}

}  // namespace

std::unique_ptr<Pipe> tcp_pipe(UniqueFd socket, std::string label) {
  const int fd = socket.get();
  if (socket_option(fd, SO_TYPE) != SOCK_STREAM) {
    throw TransportError(label + ": expected a stream socket, got another type");
  }
  const int family = socket_option(fd, SO_DOMAIN);
  const int flags = checked(::fcntl(fd, F_GETFL), "flags of a socket");
  checked(::fcntl(fd, F_SETFL, flags | O_NONBLOCK), "flags of a socket");
  const bool is_unix = family == AF_UNIX;
  if (!is_unix) {
    const int on = 1;
    checked(::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)), "TCP_NODELAY");
  }
  const bool crosses_network = leads_into_network(fd);
  if (crosses_network) {
    checked(::setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kMaxUnsentBytes, sizeof(int)),
            "TCP_NOTSENT_LOWAT");
  }
  return std::make_unique<TcpPipe>(std::move(socket), crosses_network,
                                   (is_unix ? "unix " : "tcp ") + label);
}

}  // namespace crossover
