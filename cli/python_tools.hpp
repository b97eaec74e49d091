// Commands that the Python package has: `mikv eval suite`, `mikv inspect`, `mikv report`.
#pragma once

#include <span>
#include <string_view>

namespace mikv::cli {

struct PythonTool {
  const char* group;        ///< the command that it belongs to, or empty
  const char* name;         ///< as a command
  const char* module;       ///< `python -m` of it
  const char* description;  ///< one line
};

std::span<const PythonTool> python_tools();

/// The tool that a command line asks for, or null.
const PythonTool* python_tool(int argc, char** argv);

/// Becomes the Python program, with what follows its name on the command line. Python is MIKV_PYTHON, or python3 of the
/// PATH; in a build tree the package is the tree's. Returns only by UserError.
[[noreturn]] void run_python_tool(const PythonTool& tool, int argc, char** argv);

}  // namespace mikv::cli
