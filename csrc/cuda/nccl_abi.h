// The part of NCCL's binary interface that is used, in our own words: the library is loaded at run
// time and no header of it is needed to build. tests/test_nccl_abi.py holds every size, offset,
// value and signature below against the real nccl.h.
#pragma once

#include <climits>
#include <cstddef>

namespace crossover::nccl {

struct Communicator;  // ncclComm

/// ncclResult_t; an enum of int's size there.
enum Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

/// ncclDataType_t. Messages are bytes to us.
enum DataType : int { kInt8 = 0 };

inline constexpr size_t kUniqueIdBytes = 128;

/// ncclUniqueId; passed by value.
struct UniqueId {
  char internal[kUniqueIdBytes];
};

inline constexpr int kUndefinedInt = INT_MIN;
inline constexpr unsigned int kConfigMagic = 0xcafebeefU;

/// X.Y.Z as ncclGetVersion() codes it, from 2.9 on.
constexpr int version_code(int major, int minor, int patch) {
  return major * 10000 + minor * 100 + patch;
}

/// ncclConfig_t as 2.18.1 has it. The layout only ever grows at its end: a library copies the first
/// `size` bytes and takes its defaults for fields newer than `version`. The last field came later,
/// where 2.18 has padding; it is left undefined.
struct Config {
  size_t size = sizeof(Config);
  unsigned int magic = kConfigMagic;
  unsigned int version = static_cast<unsigned int>(version_code(2, 18, 1));
  int blocking = kUndefinedInt;
  int cga_cluster_size = kUndefinedInt;
  int min_ctas = kUndefinedInt;
  int max_ctas = kUndefinedInt;
  const char* net_name = nullptr;
  int split_share = kUndefinedInt;
  int traffic_class = kUndefinedInt;
};

using Stream = void*;  // cudaStream_t, a pointer

/// The functions, each under the name that it is exported by.
struct Functions {
  Result (*ncclGetVersion)(int* version) = nullptr;
  Result (*ncclGetUniqueId)(UniqueId* id) = nullptr;
  const char* (*ncclGetErrorString)(Result result) = nullptr;
  const char* (*ncclGetLastError)(Communicator* communicator) = nullptr;
  Result (*ncclCommInitRankConfig)(Communicator** communicator, int num_ranks, UniqueId id,
                                   int rank, Config* config) = nullptr;
  Result (*ncclCommGetAsyncError)(Communicator* communicator, Result* error) = nullptr;
  Result (*ncclCommFinalize)(Communicator* communicator) = nullptr;
  Result (*ncclCommDestroy)(Communicator* communicator) = nullptr;
  Result (*ncclCommAbort)(Communicator* communicator) = nullptr;
  Result (*ncclGroupStart)() = nullptr;
  Result (*ncclGroupEnd)() = nullptr;
  Result (*ncclSend)(const void* data, size_t count, DataType type, int peer,
                     Communicator* communicator, Stream stream) = nullptr;
  Result (*ncclRecv)(void* data, size_t count, DataType type, int peer, Communicator* communicator,
                     Stream stream) = nullptr;
};

}  // namespace crossover::nccl
