// llama.cpp's own programs inside of mikv: `mikv server`, `mikv cli` and so on, with all their flags.
#pragma once

#include <string>
#include <vector>

namespace mikv::cli {

struct LlamaTool {
  const char* name;         ///< as a command of mikv
  const char* program;      ///< as llama.cpp calls it
  const char* description;  ///< one line
  int (*run)(int argc, char** argv);
};

const std::vector<LlamaTool>& llama_tools();

/// Runs `tool` with what follows its name on the command line; --kv and what begins with --kv- are ours, the rest is
/// its own. Returns its exit code. Throws UserError.
int run_llama_tool(const LlamaTool& tool, int argc, char** argv);

}  // namespace mikv::cli
