// From errors as values (the library) to the command's one error line (main).
#pragma once

#include "errors.hpp"
#include "interrupt.hpp"
#include "mikv/result.hpp"

namespace mikv::cli {

/// A failed step after Ctrl-C is the interruption itself, not an error to report.
[[noreturn]] inline void fail(const std::string& message) {
  throw_if_interrupted();
  throw UserError(message);
}

template <typename T>
T unwrap(Result<T> result) {
  if (!result) fail(result.message());
  return std::move(result).value();
}

inline void check(const Status& status) {
  if (!status.ok()) fail(status.message());
}

}  // namespace mikv::cli
