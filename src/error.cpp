#include <new>

#include "mikv/result.hpp"

namespace mikv {
namespace {

// A string of up to 15 characters needs no memory of its own.
Error without_memory(ErrorCode code) noexcept { return Error{code, "out of memory"}; }

}  // namespace

Error Error::out_of_memory(const char* line) noexcept {
  try {
    return Error{ErrorCode::out_of_memory, line};
  } catch (const std::bad_alloc&) {
    return without_memory(ErrorCode::out_of_memory);
  }
}

Error Error::copy_of(const Error& error) noexcept {
  try {
    return error;
  } catch (const std::bad_alloc&) {
    return without_memory(error.code);
  }
}

const char* error_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::ok: return "ok";
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::over_budget: return "over_budget";
    case ErrorCode::damaged_data: return "damaged_data";
    case ErrorCode::mismatch: return "mismatch";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::io: return "io";
    case ErrorCode::engine: return "engine";
  }
  return "unknown";
}

}  // namespace mikv
