#include "core/error.h"

namespace crossover {

void throw_error(ErrorKind kind, const std::string& message) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      throw InvalidArgument(message);
    case ErrorKind::kTransport:
      throw TransportError(message);
    case ErrorKind::kDevice:
      throw DeviceError(message);
    case ErrorKind::kProgressTimeout:
      throw ProgressTimeout(message);
    case ErrorKind::kNonFinite:
      throw NonFiniteError(message);
  }
  throw CrossoverError(message);
}

void check(bool ok, const char* what, std::source_location where) {
  if (ok) return;
  throw std::logic_error(std::string("internal error: ") + what + " (" + where.file_name() + ":" +
                         std::to_string(where.line()) + ")");
}

}  // namespace crossover
