#include "core/frame.h"

#include <cstring>
#include <string>

#include "core/error.h"

namespace crossover {
namespace {

constexpr uint32_t kMagic = 0x31585843;  // "CXX1"
constexpr size_t kChecksummedBytes = 60;

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) ? 0x82F63B78u : 0u);
    table[i] = value;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = crc_table();

template <typename T>
void put(std::byte* out, size_t at, T value) {
  std::memcpy(out + at, &value, sizeof(T));
}

template <typename T>
T get(const std::byte* in, size_t at) {
  T value;
  std::memcpy(&value, in + at, sizeof(T));
  return value;
}

}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t crc) {
  crc = ~crc;
  for (std::byte b : bytes) {
    crc = kCrcTable[(crc ^ std::to_integer<uint32_t>(b)) & 0xFF] ^ (crc >> 8);
  }
  return ~crc;
}

void encode_header(const FrameHeader& header, std::byte* out) {
  std::memset(out, 0, kHeaderBytes);
  put(out, 0, kMagic);
  put(out, 4, kWireVersion);
  put(out, 6, header.kind);
  put(out, 8, header.epoch);
  put(out, 12, header.tag.plan);
  put(out, 16, header.incarnation);
  put(out, 24, header.tag.round);
  put(out, 32, static_cast<uint16_t>(header.tag.phase));
  put(out, 34, header.flags);
  put(out, 36, header.tag.segment);
  put(out, 40, header.offset);
  put(out, 48, header.weight);
  put(out, 56, header.length);
  put(out, kChecksummedBytes, crc32c({out, kChecksummedBytes}));
}

FrameHeader decode_header(const std::byte* in) {
  if (get<uint32_t>(in, 0) != kMagic) {
    throw TransportError("garbled stream: no crossover_comm frame where one must begin");
  }
  const auto version = get<uint16_t>(in, 4);
  if (version != kWireVersion) {
    throw TransportError("wire version: expected " + std::to_string(kWireVersion) + ", got " +
                         std::to_string(version));
  }
  if (get<uint32_t>(in, kChecksummedBytes) != crc32c({in, kChecksummedBytes})) {
    throw TransportError("garbled stream: the checksum of a frame header is wrong");
  }
  FrameHeader header;
  const auto kind = get<uint8_t>(in, 6);
  header.kind = static_cast<FrameKind>(kind);
  header.epoch = get<uint32_t>(in, 8);
  header.tag.plan = get<uint32_t>(in, 12);
  header.incarnation = get<uint64_t>(in, 16);
  header.tag.round = get<uint64_t>(in, 24);
  header.tag.phase = get<uint16_t>(in, 32);
  header.flags = get<uint16_t>(in, 34);
  header.tag.segment = get<uint32_t>(in, 36);
  header.offset = get<uint64_t>(in, 40);
  header.weight = get<double>(in, 48);
  header.length = get<uint32_t>(in, 56);
  if (kind < 1 || kind > 4 || header.length > kMaxFramePayloadBytes) {
    throw TransportError("garbled stream: frame of kind " + std::to_string(kind) + " with " +
                         std::to_string(header.length) + " bytes");
  }
  return header;
}

}  // namespace crossover
