// Errors as values: what a call returns when its input cannot be served.
#pragma once

#include <string>
#include <utility>
#include <variant>

namespace mikv {

/// Why a call failed: one line that names the cause and what to do about it.
struct Error {
  std::string message;
};

/// Either a value or an Error. Reading the wrong one is a bug of the caller (std::bad_variant_access).
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : held_(std::move(value)) {}
  Result(Error error) : held_(std::move(error)) {}

  bool ok() const { return std::holds_alternative<T>(held_); }
  explicit operator bool() const { return ok(); }

  T& value() & { return std::get<T>(held_); }
  const T& value() const& { return std::get<T>(held_); }
  T&& value() && { return std::get<T>(std::move(held_)); }
  const std::string& error() const { return std::get<Error>(held_).message; }

 private:
  std::variant<T, Error> held_;
};

/// Success, or an Error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : message_(std::move(error.message)), failed_(true) {}

  bool ok() const { return !failed_; }
  explicit operator bool() const { return ok(); }
  const std::string& error() const { return message_; }

 private:
  std::string message_;
  bool failed_ = false;
};

}  // namespace mikv
