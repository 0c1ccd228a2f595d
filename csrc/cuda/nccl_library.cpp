#include "cuda/nccl_library.h"

#include <dlfcn.h>
#include <link.h>

#include <string_view>
#include <utility>

#include "core/error.h"

namespace crossover {
namespace {

constexpr const char* kLibraryName = "libnccl.so.2";

std::string loader_error() {
  const char* text = dlerror();
  return text ? text : "unknown reason";
}

std::string path_of(void* handle) {
  link_map* map = nullptr;
  if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || !map) return kLibraryName;
  return map->l_name;
}

template <typename Function>
void resolve(void* handle, const NcclOrigin& origin, const char* name, Function& function) {
  void* symbol = dlsym(handle, name);
  if (!symbol) {
    throw TransportError("NCCL at " + origin.path + " (" + origin.source + ") lacks the symbol " +
                         name + "; expected NCCL " + nccl_version_text(NcclLibrary::kMinVersion) +
                         " or newer");
  }
  function = reinterpret_cast<Function>(symbol);
}

}  // namespace

std::string nccl_version_text(int version) {
  const int unit = version < 10000 ? 1000 : 10000;  // up to 2.8 the code has a digit less
  return std::to_string(version / unit) + "." + std::to_string(version % unit / 100) + "." +
         std::to_string(version % 100);
}

NcclLibrary::NcclLibrary(void* handle, std::string source)
    : origin_{path_of(handle), std::move(source), 0} {
  resolve(handle, origin_, "ncclGetVersion", functions_.ncclGetVersion);
  functions_.ncclGetVersion(&origin_.version);
  if (origin_.version < kMinVersion) {
    throw TransportError("NCCL at " + origin_.path + " (" + origin_.source + ") is version " +
                         nccl_version_text(origin_.version) + "; expected " +
                         nccl_version_text(kMinVersion) + " or newer");
  }
#define CROSSOVER_RESOLVE(name) resolve(handle, origin_, #name, functions_.name)
  CROSSOVER_RESOLVE(ncclGetUniqueId);
  CROSSOVER_RESOLVE(ncclGetErrorString);
  CROSSOVER_RESOLVE(ncclGetLastError);
  CROSSOVER_RESOLVE(ncclCommInitRankConfig);
  CROSSOVER_RESOLVE(ncclCommGetAsyncError);
  CROSSOVER_RESOLVE(ncclCommFinalize);
  CROSSOVER_RESOLVE(ncclCommDestroy);
  CROSSOVER_RESOLVE(ncclCommAbort);
  CROSSOVER_RESOLVE(ncclGroupStart);
  CROSSOVER_RESOLVE(ncclGroupEnd);
  CROSSOVER_RESOLVE(ncclSend);
  CROSSOVER_RESOLVE(ncclRecv);
#undef CROSSOVER_RESOLVE
}

std::shared_ptr<NcclLibrary> NcclLibrary::load(const NcclSearch& search) {
  std::string tried;
  const auto attempt = [&tried](const std::string& path, int flags, const std::string& source) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | flags);
    if (!handle) {
      const bool absent = (flags & RTLD_NOLOAD) != 0;
      tried += "\n  " + source + ": " + (absent ? "none" : loader_error());
    }
    return handle ? std::shared_ptr<NcclLibrary>(new NcclLibrary(handle, source)) : nullptr;
  };
  if (!search.override_path.empty()) {
    if (auto found = attempt(search.override_path, 0, "CROSSOVER_NCCL_SO")) return found;
    throw TransportError("NCCL cannot be loaded; CROSSOVER_NCCL_SO allows one place only:" + tried);
  }
  if (search.use_loaded) {
    if (auto found = attempt(kLibraryName, RTLD_NOLOAD, "in the process already")) return found;
  }
  if (!search.wheel_path.empty()) {
    if (auto found = attempt(search.wheel_path, 0, "the nvidia-nccl package")) return found;
  }
  if (search.use_loader_path) {
    if (auto found = attempt(kLibraryName, 0, "the loader's path")) return found;
  }
  throw TransportError("NCCL cannot be loaded; tried:" + tried);
}

nccl::UniqueId NcclLibrary::unique_id() const {
  nccl::UniqueId id{};
  check_result(functions_.ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr);
  return id;
}

void NcclLibrary::check_result(nccl::Result result, const std::string& what,
                               nccl::Communicator* communicator) const {
  if (result == nccl::kSuccess || result == nccl::kInProgress) return;
  const char* detail = functions_.ncclGetLastError(communicator);
  std::string message = what + ": " + functions_.ncclGetErrorString(result);
  if (detail && *detail) message += std::string(" (") + detail + ")";
  throw TransportError(message + "; NCCL " + nccl_version_text(origin_.version) + " at " +
                       origin_.path);
}

}  // namespace crossover
