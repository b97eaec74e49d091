#include "python_tools.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "errors.hpp"
#include "model_store.hpp"

namespace mikv::cli {
namespace {

namespace fs = std::filesystem;

constexpr std::array kTools = {
    PythonTool{"eval", "suite", "mikv.suite", "standard benchmarks on `mikv server`: GSM8K, HumanEval, lines, context"},
    PythonTool{"", "inspect", "mikv.inspect", "a page that shows the tokens of a prompt by tier and importance"},
    PythonTool{"", "report", "mikv.report", "a page with charts and tables of measured runs"}};

// What is missing is said in one line, as everywhere.
constexpr const char* kProgram = R"(
import runpy, sys
module, name = sys.argv[1:3]
try:
    import mikv
except ImportError as error:
    print(f"mikv: {name} needs the Python package of mikv ({error}); pip install ./python, or set MIKV_PYTHON to a "
          "Python that has it", file=sys.stderr)
    sys.exit(2)
sys.argv = [name] + sys.argv[3:]
runpy.run_module(module, run_name="__main__")
)";

// In a build tree, the package beside it and the library that was built, where the user has not chosen others.
void use_build_tree(const fs::path& binary) {
  std::error_code none;
  const fs::path build = binary.parent_path().parent_path(), package = build.parent_path() / "python";
  const fs::path library = build / "src" / "libmikv.so";
  if (std::getenv("MIKV_LIBRARY") || !fs::exists(package / "mikv" / "__init__.py", none) || !fs::exists(library, none))
    return;
  setenv("MIKV_LIBRARY", library.c_str(), 1);
  const char* const before = std::getenv("PYTHONPATH");
  setenv("PYTHONPATH", before ? (package.string() + ":" + before).c_str() : package.c_str(), 1);
}

}  // namespace

std::span<const PythonTool> python_tools() { return kTools; }

const PythonTool* python_tool(int argc, char** argv) {
  for (const PythonTool& tool : kTools) {
    const int at = *tool.group ? 2 : 1;
    if (argc <= at || std::string_view(argv[at]) != tool.name) continue;
    if (at == 1 || std::string_view(argv[1]) == tool.group) return &tool;
  }
  return nullptr;
}

void run_python_tool(const PythonTool& tool, int argc, char** argv) {
  const char* const chosen = std::getenv("MIKV_PYTHON");
  std::string python = chosen && *chosen ? chosen : "python3", program = kProgram, module = tool.module;
  const int first = *tool.group ? 3 : 2;
  std::string name = "mikv " + std::string(tool.group) + (*tool.group ? " " : "") + tool.name, dash_c = "-c";
  std::vector<std::string> rest(argv + first, argv + argc);
  std::error_code none;
  for (size_t i = 0; i + 1 < rest.size(); ++i) {
    const bool names_model = rest[i] == "-m" || rest[i] == "--model";
    if (names_model && !fs::exists(rest[i + 1], none)) rest[i + 1] = resolve_model(rest[i + 1]);
  }
  const fs::path binary = fs::read_symlink("/proc/self/exe", none);
  if (!binary.empty()) {
    use_build_tree(binary);
    setenv("MIKV_BINARY", binary.c_str(), 0);
  }
  std::vector<char*> arguments{python.data(), dash_c.data(), program.data(), module.data(), name.data()};
  for (std::string& argument : rest) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  throw UserError(
      fmt::format("cannot run {}: {}; install Python 3.10 or newer, or set MIKV_PYTHON", python, std::strerror(errno)));
}

}  // namespace mikv::cli
