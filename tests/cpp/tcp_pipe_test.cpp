// What is particular to pipes over sockets; the common contract is in pipe_test.cpp.
#include "host/tcp_pipe.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>

#include "core/error.h"
#include "pipe_pair.h"

namespace crossover::testing {
namespace {

TEST(TcpPipe, SetsTheSocketNonBlockingAndNodelay) {
  auto [caller, answered] = loopback_sockets();
  const int fd = caller.get();
  const auto pipe = tcp_pipe(std::move(caller), "rank 3 (10.0.0.4:4711)");
  EXPECT_TRUE(::fcntl(fd, F_GETFL) & O_NONBLOCK);
  int nodelay = 0;
  socklen_t size = sizeof(nodelay);
  ASSERT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &nodelay, &size), 0);
  EXPECT_NE(nodelay, 0);
  EXPECT_EQ(pipe->describe(), "tcp rank 3 (10.0.0.4:4711)");
}

TEST(TcpPipe, RefusesWhatIsNoStreamSocket) {
  UniqueFd datagram(checked(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket"));
  EXPECT_THROW(tcp_pipe(std::move(datagram), "peer"), TransportError);
  UniqueFd file(checked(::open("/dev/null", O_RDONLY | O_CLOEXEC), "open"));
  EXPECT_THROW(tcp_pipe(std::move(file), "peer"), TransportError);
  EXPECT_THROW(tcp_pipe(UniqueFd(), "peer"), TransportError);
}

// A socket closed with unread bytes resets the connection.
TEST(TcpPipe, WhatCameBeforeAResetIsReadThoughSendingFailedFirst) {
  for (const auto make : {loopback_pair, unix_pair}) {
    PipePair pair = make();
    StreamWriter theirs(*pair.b);
    theirs.write_all(50'000);
    StreamWriter ours(*pair.a);
    ours.write_all(1000);
    pair.b.reset();
    const auto poller = system_poller();
    sleep_on(*pair.a, *poller);
    for (int k = 0; k < 3; ++k) ours.write(1000);
    StreamReader reader(*pair.a);
    reader.read_to_end(*poller);
    EXPECT_EQ(reader.position(), 50'000u) << pair.a->describe();
    EXPECT_EQ(reader.wrong(), 0u);
    EXPECT_NE(pair.a->end_reason(), "connection closed");
    EXPECT_TRUE(pair.a->drained());
  }
}

TEST(TcpPipe, AResetIsNamed) {
  auto [caller, answered] = loopback_sockets();
  const auto pipe = tcp_pipe(std::move(caller), "peer");
  const linger at_once{.l_onoff = 1, .l_linger = 0};
  ASSERT_EQ(::setsockopt(answered.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once)), 0);
  answered.reset();
  StreamReader(*pipe).read_to_end(*system_poller());
  EXPECT_EQ(pipe->end_reason(), "reset by peer");
}

}  // namespace
}  // namespace crossover::testing
