#include "mikv/result.hpp"

namespace mikv {

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
