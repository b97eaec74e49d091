#include "interrupt.hpp"

#include <unistd.h>

#include <csignal>

namespace mikv::cli {
namespace {

volatile std::sig_atomic_t stop_requested = 0;
volatile std::sig_atomic_t n_at_once = 0;

void on_signal(int signal) {
  if (n_at_once > 0) _exit(kInterruptedExitCode);
  stop_requested = 1;
  std::signal(signal, SIG_DFL);  // the second one ends the process
}

}  // namespace

InterruptEndsAtOnce::InterruptEndsAtOnce() {
  n_at_once = n_at_once + 1;
  if (!interrupted()) return;
  n_at_once = n_at_once - 1;
  throw Interrupted{};
}

InterruptEndsAtOnce::~InterruptEndsAtOnce() { n_at_once = n_at_once - 1; }

void install_interrupt_handler() {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
}

bool interrupted() { return stop_requested != 0; }

void throw_if_interrupted() {
  if (interrupted()) throw Interrupted{};
}

}  // namespace mikv::cli
