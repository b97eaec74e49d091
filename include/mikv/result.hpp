// Errors as values.
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "mikv/export.h"
namespace mikv {

/// Kind of failure, for programs that react to it. Equal to mikv_error in mikv.h.
enum class ErrorCode : int {
  ok = 0,
  invalid_argument = 1,  ///< an argument is out of range or contradicts another; correct the call
  out_of_memory = 2,     ///< the system gives no memory, or a call's own memory exceeds the budget; use fewer
                         ///< or shorter sequences
  over_budget = 3,   ///< a step, copy or load does not fit the budget; free sequences, use a smaller batch or raise it
  damaged_data = 4,  ///< saved bytes are cut short, changed or of an unknown version
  mismatch = 5,      ///< saved bytes are whole, but of another model, cache or context
  unsupported = 6,   ///< the model or the call needs something that this library does not have
  io = 7,            ///< a file cannot be read or written
  engine = 8,        ///< the engine's own failure: CellOwner, Context::fail()
};

/// The code's name as spelled above, such as "out_of_memory".
MIKV_API const char* error_name(ErrorCode code);

/// Why a call failed: a code for programs, and one line for people that names cause and remedy.
struct Error {
  explicit Error(std::string text) : message(std::move(text)) {}
  Error(ErrorCode kind, std::string text) : code(kind), message(std::move(text)) {}

  /// ErrorCode::out_of_memory with `line` as its message, or a shorter one where not even that has room.
  MIKV_API static Error out_of_memory(const char* line) noexcept;
  /// A copy; where not even that has room, its code with another line.
  MIKV_API static Error copy_of(const Error& error) noexcept;

  ErrorCode code = ErrorCode::invalid_argument;
  std::string message;
};

/// A value or an Error. Reading the one that is not there throws std::bad_variant_access: check ok() first.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}
  Result(Error error) : held_(std::move(error)) {}

  bool ok() const { return std::holds_alternative<T>(held_); }
  explicit operator bool() const { return ok(); }

  T& value() & { return std::get<T>(held_); }
  const T& value() const& { return std::get<T>(held_); }
  T value() && { return std::get<T>(std::move(held_)); }
  const Error& error() const { return std::get<Error>(held_); }
  const std::string& message() const { return error().message; }

 private:
  std::variant<T, Error> held_;
};

/// Success, or an Error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}

  bool ok() const { return error_.code == ErrorCode::ok; }
  explicit operator bool() const { return ok(); }
  ErrorCode code() const { return error_.code; }
  const Error& error() const { return error_; }
  const std::string& message() const { return error_.message; }

 private:
  Error error_{ErrorCode::ok, {}};
};

}  // namespace mikv
