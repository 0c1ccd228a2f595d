// Compiled, never run, by tests/test_nccl_abi.py: holds cuda/nccl_abi.h against the real nccl.h.
#include <nccl.h>

#include <cstddef>
#include <type_traits>

#include "cuda/nccl_abi.h"

namespace nccl = crossover::nccl;

// Two types that a call passes in the same way.
template <typename Ours, typename Theirs>
constexpr bool passed_alike() {
  if constexpr (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>) return true;
  const bool both_numbers = (std::is_integral_v<Ours> || std::is_enum_v<Ours>) &&
                            (std::is_integral_v<Theirs> || std::is_enum_v<Theirs>);
  const bool both_classes = std::is_class_v<Ours> && std::is_class_v<Theirs> &&
                            std::is_trivially_copyable_v<Ours> &&
                            std::is_trivially_copyable_v<Theirs>;
  return (both_numbers || both_classes) && sizeof(Ours) == sizeof(Theirs) &&
         alignof(Ours) == alignof(Theirs);
}

template <typename Ours, typename Theirs>
struct Alike : std::false_type {};

template <typename R, typename... A, typename S, typename... B>
  requires(sizeof...(A) == sizeof...(B))
struct Alike<R (*)(A...), S (*)(B...)>
    : std::bool_constant<passed_alike<R, S>() && (passed_alike<A, B>() && ...)> {};

#define SAME_FUNCTION(name) static_assert(Alike<decltype(nccl::Functions::name), decltype(&name)>())
SAME_FUNCTION(ncclGetVersion);
SAME_FUNCTION(ncclGetUniqueId);
SAME_FUNCTION(ncclGetErrorString);
SAME_FUNCTION(ncclGetLastError);
SAME_FUNCTION(ncclCommInitRankConfig);
SAME_FUNCTION(ncclCommGetAsyncError);
SAME_FUNCTION(ncclCommFinalize);
SAME_FUNCTION(ncclCommDestroy);
SAME_FUNCTION(ncclCommAbort);
SAME_FUNCTION(ncclGroupStart);
SAME_FUNCTION(ncclGroupEnd);
SAME_FUNCTION(ncclSend);
SAME_FUNCTION(ncclRecv);
static_assert(sizeof(nccl::Functions) == 13 * sizeof(void*), "each function is checked above");

static_assert(sizeof(nccl::UniqueId) == sizeof(ncclUniqueId));
static_assert(nccl::kUniqueIdBytes == NCCL_UNIQUE_ID_BYTES);

static_assert(int{nccl::kSuccess} == int{ncclSuccess});
static_assert(int{nccl::kUnhandledCudaError} == int{ncclUnhandledCudaError});
static_assert(int{nccl::kSystemError} == int{ncclSystemError});
static_assert(int{nccl::kInternalError} == int{ncclInternalError});
static_assert(int{nccl::kInvalidArgument} == int{ncclInvalidArgument});
static_assert(int{nccl::kInvalidUsage} == int{ncclInvalidUsage});
static_assert(int{nccl::kRemoteError} == int{ncclRemoteError});
static_assert(int{nccl::kInProgress} == int{ncclInProgress});
static_assert(int{nccl::kInt8} == int{ncclInt8});

static_assert(nccl::kUndefinedInt == NCCL_CONFIG_UNDEF_INT);
static_assert(nccl::version_code(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH) == NCCL_VERSION_CODE);
constexpr ncclConfig_t kTheirs = NCCL_CONFIG_INITIALIZER;
static_assert(kTheirs.magic == nccl::kConfigMagic);
static_assert(kTheirs.version >= nccl::Config{}.version);

// Ours is a beginning of theirs.
static_assert(sizeof(nccl::Config) <= sizeof(ncclConfig_t));
static_assert(alignof(nccl::Config) == alignof(ncclConfig_t));
#define SAME_FIELD(ours, theirs)                                                 \
  static_assert(offsetof(nccl::Config, ours) == offsetof(ncclConfig_t, theirs)); \
  static_assert(sizeof(nccl::Config{}.ours) == sizeof(ncclConfig_t{}.theirs))
SAME_FIELD(size, size);
SAME_FIELD(magic, magic);
SAME_FIELD(version, version);
SAME_FIELD(blocking, blocking);
SAME_FIELD(cga_cluster_size, cgaClusterSize);
SAME_FIELD(min_ctas, minCTAs);
SAME_FIELD(max_ctas, maxCTAs);
SAME_FIELD(net_name, netName);
SAME_FIELD(split_share, splitShare);
#if NCCL_VERSION_CODE >= 22700
SAME_FIELD(traffic_class, trafficClass);
#endif
