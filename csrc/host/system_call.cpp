#include "host/system_call.h"

#include <cerrno>
#include <system_error>

#include "core/error.h"

namespace crossover {

std::string error_text(int error_number) { return std::system_category().message(error_number); }

int checked(int result, const char* what) {
  if (result == -1) throw TransportError(std::string(what) + ": " + error_text(errno));
  return result;
}

}  // namespace crossover
