// The mikv command: reads the command line, runs one subcommand, turns failures into one line and an exit code.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <exception>
#include <string_view>

#include "busy_machine.hpp"
#include "commands.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "json_report.hpp"
#include "llama_tools.hpp"
#include "python_tools.hpp"
#include "version.hpp"

namespace {

using namespace mikv::cli;

constexpr int kBadInputExitCode = 2;
constexpr int kFailureExitCode = 1;

/// Everything that was said about the error, on one line.
std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

void declare(CLI::App& app) {
  app.set_version_flag("--version", fmt::format("mikv {} ({})", kVersion, kCommit));
  app.require_subcommand(1);
  app.fallthrough(false);
  app.footer(
      "Example:\n  mikv run -m qwen2.5-coder-0.5b -p \"Explain what a KV cache is.\" --kv mikv\n"
      "Each command has its own --help with an example.");
  add_run_command(app);
  CLI::App* eval = app.add_subcommand("eval", "compare caches on the same prompts: accuracy, divergence, bytes, speed");
  eval->require_subcommand(1);
  eval->footer(
      "Example:\n  mikv eval lines -m qwen2.5-coder-0.5b --lines 20 --prompts 20 --kv full,h2o,mikv,llama:q4_0");
  add_eval_lines_command(*eval);
  add_eval_kld_command(*eval);
  CLI::App* bench = app.add_subcommand("bench", "time caches against llama.cpp's, answers checked first");
  bench->require_subcommand(1);
  bench->footer(
      "Example:\n  mikv bench decode -m qwen2.5-coder-0.5b --depth 0,4096 --kv full,mikv,llama:f16,llama:q4_0");
  add_bench_attention_command(*bench);
  add_bench_decode_command(*bench);
  add_bench_prefill_command(*bench);
  add_bench_wait_command(*bench);
  add_bench_threads_command(*bench);
  add_tune_command(app);
  add_calibrate_command(app);
  add_estimate_command(app);
  add_info_command(app);
  add_model_command(app);
  for (const PythonTool& tool : python_tools()) {
    CLI::App* const group = *tool.group ? app.get_subcommand(tool.group) : &app;
    group->add_subcommand(tool.name, tool.description);
  }
  for (const LlamaTool& tool : llama_tools()) app.add_subcommand(tool.name, tool.description);
}

/// What the command line is wrong about, and where the right form is found.
int report_bad_command_line(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app.exit(error);  // --help, --version
  const CLI::App* chosen = &app;
  std::string command = "mikv";
  while (!chosen->get_subcommands().empty()) {
    chosen = chosen->get_subcommands().front();
    command += " " + chosen->get_name();
  }
  // CLI11 reports a mistyped command as a missing one.
  const auto unknown = chosen->remaining();
  const std::string cause =
      unknown.empty() ? one_line(error.what()) : fmt::format("unknown argument \"{}\"", unknown.front());
  fmt::print(stderr, "mikv: {}; see `{} --help`\n", cause, command);
  return kBadInputExitCode;
}

int run(int argc, char** argv) {
  CLI::App app("mikv: a KV cache five times smaller, in llama.cpp, with nothing forgotten.");
  declare(app);
  try {
    app.parse(argc, argv);
    return 0;
  } catch (const CLI::ParseError& error) {
    return report_bad_command_line(app, error);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view command = argc > 1 ? argv[1] : "";
  const PythonTool* const of_python = python_tool(argc, argv);
  // Benchmarks leave the threads as llama.cpp has them.
  if (!of_python && (command == "run" || command == "eval" || command == "tune")) sleep_instead_of_spin_if_busy(argv);
  try {
    // These read their command lines, and catch signals, themselves.
    for (const LlamaTool& tool : llama_tools()) {
      if (command == tool.name) return run_llama_tool(tool, argc - 2, argv + 2);
    }
    if (of_python) run_python_tool(*of_python, argc, argv);
    install_interrupt_handler();
    set_command_line(argc, argv);
    return run(argc, argv);
  } catch (const Interrupted&) {
    return kInterruptedExitCode;
  } catch (const UserError& error) {
    fmt::print(stderr, "mikv: {}\n", one_line(error.what()));
    return kBadInputExitCode;
  } catch (const std::exception& error) {
    if (interrupted()) return kInterruptedExitCode;
    fmt::print(stderr, "mikv: {}\n", one_line(error.what()));
    return kFailureExitCode;
  }
}
