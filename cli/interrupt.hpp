// Ctrl-C: the first one asks the running command to stop at the next token and to keep what it has; the second one
// kills.
#pragma once

namespace mikv::cli {

inline constexpr int kInterruptedExitCode = 130;  // 128 + SIGINT, as shells report it

/// Thrown by a command that was interrupted, after it printed what it had. main() turns it into the exit code.
struct Interrupted {};

/// While one lives, Ctrl-C ends the process at once: for work of which nothing can be kept and that cannot be told to
/// stop, such as loading a model.
class InterruptEndsAtOnce {
 public:
  InterruptEndsAtOnce();  ///< Throws Interrupted if that came before.
  ~InterruptEndsAtOnce();
  InterruptEndsAtOnce(const InterruptEndsAtOnce&) = delete;
  InterruptEndsAtOnce& operator=(const InterruptEndsAtOnce&) = delete;
};

void install_interrupt_handler();
bool interrupted();
void throw_if_interrupted();

}  // namespace mikv::cli
