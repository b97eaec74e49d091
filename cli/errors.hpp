// How a command says that its input is wrong.
#pragma once

#include <stdexcept>

namespace mikv::cli {

/// One line of the form "cause; remedy". main() prints it as "mikv: cause; remedy" on stderr and exits with 2.
struct UserError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace mikv::cli
