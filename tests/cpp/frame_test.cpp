#include "core/frame.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "core/error.h"

namespace crossover {
namespace {

FrameHeader sample() {
  FrameHeader header;
  header.kind = FrameKind::kData;
  header.flags = 1;
  header.epoch = 7;
  header.incarnation = 0x0123456789ABCDEF;
  header.tag = {.plan = 3, .segment = 1000000, .round = uint64_t{1} << 40, .phase = 65535};
  header.offset = uint64_t{5} << 33;
  header.weight = 0.7;
  header.length = kMaxFramePayloadBytes;
  return header;
}

std::array<std::byte, kHeaderBytes> encoded(const FrameHeader& header) {
  std::array<std::byte, kHeaderBytes> bytes;
  encode_header(header, bytes.data());
  return bytes;
}

TEST(Frame, HeaderSurvivesTheWire) {
  const FrameHeader header = sample();
  const FrameHeader back = decode_header(encoded(header).data());
  EXPECT_EQ(back.kind, header.kind);
  EXPECT_EQ(back.flags, header.flags);
  EXPECT_EQ(back.epoch, header.epoch);
  EXPECT_EQ(back.incarnation, header.incarnation);
  EXPECT_EQ(back.tag, header.tag);
  EXPECT_EQ(back.offset, header.offset);
  EXPECT_EQ(back.weight, header.weight);
  EXPECT_EQ(back.length, header.length);
}

TEST(Frame, ChecksumIsTheCastagnoliOne) {
  const std::string text = "123456789";
  EXPECT_EQ(crc32c(std::as_bytes(std::span(text))), 0xE3069283u);
}

TEST(Frame, AnySingleFlippedBitIsRefused) {
  const auto good = encoded(sample());
  for (size_t bit = 0; bit < kHeaderBytes * 8; ++bit) {
    auto bad = good;
    bad[bit / 8] ^= std::byte{1} << (bit % 8);
    EXPECT_THROW(decode_header(bad.data()), TransportError) << "bit " << bit;
  }
}

TEST(Frame, AnotherVersionIsNamed) {
  auto bytes = encoded(sample());
  bytes[4] = std::byte{9};
  try {
    decode_header(bytes.data());
    FAIL();
  } catch (const TransportError& error) {
    EXPECT_STREQ(error.what(), "wire version: expected 1, got 9");
  }
}

TEST(Frame, PayloadOverTheLimitIsRefused) {
  FrameHeader header = sample();
  header.length = kMaxFramePayloadBytes + 1;
  EXPECT_THROW(decode_header(encoded(header).data()), TransportError);
}

TEST(Frame, PaddingReachesTheNextMultipleOfEight) {
  EXPECT_EQ(padded_bytes(0), 0u);
  EXPECT_EQ(padded_bytes(1), 8u);
  EXPECT_EQ(padded_bytes(8), 8u);
  EXPECT_EQ(padded_bytes(9), 16u);
}

}  // namespace
}  // namespace crossover
