// Failures of system calls as errors of ours.
#pragma once

#include <string>

namespace crossover {

/// The system's text for an errno value, e.g. "Connection refused".
std::string error_text(int error_number);

/// Returns `result`; if it is -1, throws TransportError with `what` and errno's text.
int checked(int result, const char* what);

}  // namespace crossover
