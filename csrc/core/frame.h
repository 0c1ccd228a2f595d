// The wire header, version 1: 64 bytes, little-endian, in front of every frame.
//
//   0 magic u32 | 4 version u16 | 6 kind u8 | 7 codec u8 | 8 epoch u32 | 12 plan u32
//  16 incarnation u64 | 24 round u64 | 32 phase u16 | 34 flags u16 | 36 segment u32
//  40 offset u64 | 48 weight f64 (of the message, for push-sum) | 56 length u32 (payload bytes)
//  60 crc32c u32 over bytes 0..59
//
// The payload follows, padded with zeros to a multiple of 8.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "core/message.h"

namespace crossover {

inline constexpr size_t kHeaderBytes = 64;
inline constexpr size_t kMaxFramePayloadBytes = size_t{256} << 10;
inline constexpr uint16_t kWireVersion = 1;

enum class FrameKind : uint8_t {
  kReady = 1,      // there is room for the tagged message; offset = its size in bytes
  kData = 2,       // `length` bytes of the tagged message from `offset` on
  kHeartbeat = 3,  // the progress thread lives
  kFarewell = 4,   // the last frame; flags bit 0: after a failure; offset: origin; payload: cause
};

struct FrameHeader {
  FrameKind kind = FrameKind::kHeartbeat;
  uint16_t flags = 0;
  uint32_t epoch = 0;
  uint64_t incarnation = 0;
  MessageTag tag;
  uint64_t offset = 0;
  double weight = 0.0;
  uint32_t length = 0;
};

/// Payload bytes as they stand in the stream.
constexpr size_t padded_bytes(size_t length) { return (length + 7) & ~size_t{7}; }

/// CRC-32C (Castagnoli), as in RFC 3720. `crc` is that of the bytes before, 0 at the start.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);

/// Writes the header to `out`, kHeaderBytes of room.
void encode_header(const FrameHeader& header, std::byte* out);

/// Reads kHeaderBytes. Throws TransportError that says which field is wrong: a stranger's bytes,
/// another version, a damaged header, or a payload over kMaxFramePayloadBytes.
FrameHeader decode_header(const std::byte* in);

}  // namespace crossover
