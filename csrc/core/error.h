// The one tree of errors. The Python classes in crossover_comm/errors.py carry the same names.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace crossover {

/// Root of everything the library throws on purpose.
class CrossoverError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The caller's mistake: what was given, what was wanted, where. A ValueError in Python.
class InvalidArgument : public CrossoverError {
 public:
  using CrossoverError::CrossoverError;
};

/// A peer or a link failed: closed, refused, garbled, or silent past the liveness deadline.
class TransportError : public CrossoverError {
 public:
  using CrossoverError::CrossoverError;
};

/// Device memory or a device call failed.
class DeviceError : public CrossoverError {
 public:
  using CrossoverError::CrossoverError;
};

/// A peer lives but has not posted its part within the progress deadline.
class ProgressTimeout : public CrossoverError {
 public:
  using CrossoverError::CrossoverError;
};

/// A parameter holds NaN or infinity and was not sent.
class NonFiniteError : public CrossoverError {
 public:
  using CrossoverError::CrossoverError;
};

/// Which class of the tree a stored failure is re-thrown as.
enum class ErrorKind { kInvalidArgument, kTransport, kDevice, kProgressTimeout, kNonFinite };

/// Throws the class that `kind` names.
[[noreturn]] void throw_error(ErrorKind kind, const std::string& message);

/// Invariants of our own: throws std::logic_error with the place if `ok` is false.
void check(bool ok, const char* what, std::source_location where = std::source_location::current());

}  // namespace crossover
