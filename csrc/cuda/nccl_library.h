// NCCL, loaded at run time and never linked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cuda/nccl_abi.h"

namespace crossover {

/// Where to look, first to last.
struct NcclSearch {
  std::string override_path;  // CROSSOVER_NCCL_SO; if given, nothing else is tried
  bool use_loaded = true;     // a libnccl.so.2 that is in the process already: torch's
  std::string wheel_path;     // of the nvidia-nccl package; empty: there is none
  bool use_loader_path = true;
};

/// What was found.
struct NcclOrigin {
  std::string path;    // of the file that the loader mapped
  std::string source;  // "CROSSOVER_NCCL_SO", "in the process already", ...
  int version = 0;     // as ncclGetVersion() codes it
};

/// "2.28.9"
std::string nccl_version_text(int version);

/// A loaded libnccl. It stays mapped until the process ends: threads of it may outlive every user.
class NcclLibrary {
 public:
  /// The first whose ncclCommAbort may come from another thread than the calls before it.
  static constexpr int kMinVersion = nccl::version_code(2, 19, 1);

  /// Takes the first library that is there. TransportError if there is none (each place and why
  /// not), if the one found is older than kMinVersion, or lacks a symbol (which). A library that is
  /// there and unusable ends the search: a second NCCL in one process is worse than none.
  static std::shared_ptr<NcclLibrary> load(const NcclSearch& search);

  const NcclOrigin& origin() const { return origin_; }
  const nccl::Functions& functions() const { return functions_; }

  /// A fresh id for a communicator; one rank makes it, all ranks use it.
  nccl::UniqueId unique_id() const;

  /// Throws TransportError unless `result` is success or in progress. `what`: the call, for the
  /// message; `communicator` may be null.
  void check_result(nccl::Result result, const std::string& what,
                    nccl::Communicator* communicator) const;

 private:
  NcclLibrary(void* handle, std::string source);

  NcclOrigin origin_;
  nccl::Functions functions_;
};

}  // namespace crossover
