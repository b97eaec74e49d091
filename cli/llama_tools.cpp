#include "llama_tools.hpp"

#include <fmt/format.h>
#include <malloc.h>
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string_view>

#include "errors.hpp"
#include "interpose/drop_in.hpp"
#include "model_store.hpp"

// Of llama.cpp's libraries; no header declares them.
int llama_server(int argc, char** argv);
int llama_cli(int argc, char** argv);
int llama_completion(int argc, char** argv);
int llama_bench(int argc, char** argv);
int llama_batched_bench(int argc, char** argv);
int llama_perplexity(int argc, char** argv);

namespace mikv::cli {
namespace {

constexpr std::string_view kHelp =
    "mikv {0}: llama.cpp's {1} with its KV cache in mikv.\n\n"
    "  --kv SPEC          the cache: full, mikv, mikv-hq, mikv-max, ... (`mikv info` lists them), or llama:f16 for "
    "llama.cpp's\n"
    "                     own (default: mikv; environment: MIKV_KV)\n"
    "  --kv-budget SIZE   the most that K and V of all contexts may take, e.g. 300MiB (MIKV_KV_BUDGET)\n"
    "  --kv-report FILE   bytes and figures, kept up to date: JSON, or for Prometheus if FILE ends with .prom "
    "(MIKV_KV_REPORT)\n"
    "  -m NAME            also takes the names of `mikv model list`\n\n"
    "Example:\n  {2}\n\n"
    "All other options are {1}'s:\n\n";

const char* example(std::string_view tool) {
  if (tool == "server") return "mikv server -m qwen2.5-coder-1.5b -c 32768 -np 4 --kv mikv --port 8080";
  if (tool == "perplexity") return "mikv perplexity -m qwen2.5-coder-0.5b -f text.txt --kv mikv";
  if (tool == "bench-llama") return "mikv bench-llama -m qwen2.5-coder-0.5b -p 512 -n 64 -d 4096 -fa 1 --kv mikv";
  if (tool == "batched-bench")
    return "mikv batched-bench -m qwen2.5-coder-0.5b -c 8192 -npp 512 -ntg 32 -npl 1,4 --kv mikv";
  if (tool == "completion")
    return "mikv completion -m qwen2.5-coder-0.5b -p \"The KV cache is\" -n 64 -no-cnv --kv mikv";
  return "mikv cli -m qwen2.5-coder-0.5b --kv mikv";
}

struct Options {
  std::optional<std::string> kv, budget, report;
  std::vector<std::string> rest;
  bool help = false;
};

// Takes out what is ours.
Options split(int argc, char** argv) {
  Options options;
  for (int i = 0; i < argc; ++i) {
    const std::string_view arg = argv[i];
    options.help |= arg == "-h" || arg == "--help" || arg == "--usage";
    std::optional<std::string>* ours = nullptr;
    for (const auto& [name, value] :
         {std::pair{"--kv", &options.kv}, {"--kv-budget", &options.budget}, {"--kv-report", &options.report}}) {
      if (arg == name) {
        ours = value;
        if (i + 1 >= argc) throw UserError(fmt::format("{} needs a value; see --help", name));
        *ours = argv[++i];
      } else if (arg.starts_with(std::string(name) + "=")) {
        ours = value;
        *ours = std::string(arg.substr(std::string_view(name).size() + 1));
      }
    }
    if (!ours) options.rest.emplace_back(arg);
  }
  return options;
}

// From which size on memory is mapped, and so given back when it is freed. Left to itself, glibc raises this to the
// size of what was freed: states of a slot, megabytes each, then come from the heap and leave holes there that a server
// keeps.
constexpr int kMapFromBytes = 128 << 10;

void give_back_what_is_freed() {
#ifdef __GLIBC__
  mallopt(M_MMAP_THRESHOLD, kMapFromBytes);
#endif
}

// With these llama.cpp fetches what -m names and is not there.
bool fetches(const std::vector<std::string>& args) {
  static constexpr std::array flags = {"-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo"};
  return std::ranges::any_of(args, [](const std::string& arg) { return std::ranges::find(flags, arg) != flags.end(); });
}

// -m may name a model of ours. What is no file is refused here: llama.cpp says so in ten lines, or waits for ever.
void resolve_models(std::vector<std::string>& args) {
  const auto known = package_models();
  const bool may_be_missing = fetches(args);
  for (size_t i = 0; i + 1 < args.size(); ++i) {
    static constexpr std::array flags = {"-m", "--model", "-md", "--model-draft"};
    if (std::ranges::find(flags, args[i]) == flags.end()) continue;
    std::string& model = args[i + 1];
    std::error_code failure;
    const bool exists = std::filesystem::exists(model, failure);
    const bool ours = !exists && std::ranges::any_of(known, [&](const PackageModel& m) { return m.name == model; });
    if (ours) model = resolve_model(model);
    const bool is_list = !exists && model.find(',') != std::string::npos;  // of llama-bench
    if (!ours && !is_list && (exists || !may_be_missing)) require_model_file(model);
  }
}

const char* value_or_environment(const std::optional<std::string>& value, const char* variable) {
  return value ? value->c_str() : std::getenv(variable);
}

}  // namespace

const std::vector<LlamaTool>& llama_tools() {
  static const std::vector<LlamaTool> tools = {
      {"server", "llama-server", "llama.cpp's HTTP server, its KV cache in mikv", llama_server},
      {"cli", "llama-cli", "llama.cpp's chat on the command line, its KV cache in mikv", llama_cli},
      {"completion", "llama-completion", "llama.cpp's text completion, its KV cache in mikv", llama_completion},
      {"bench-llama", "llama-bench", "llama.cpp's benchmark, its KV cache in mikv", llama_bench},
      {"batched-bench", "llama-batched-bench", "llama.cpp's benchmark of parallel sequences, its KV cache in mikv",
       llama_batched_bench},
      {"perplexity", "llama-perplexity", "llama.cpp's perplexity and KL divergence, its KV cache in mikv",
       llama_perplexity}};
  return tools;
}

int run_llama_tool(const LlamaTool& tool, int argc, char** argv) {
  give_back_what_is_freed();
  Options options = split(argc, argv);
  if (options.help) {
    fmt::print(fmt::runtime(kHelp), tool.name, tool.program, example(tool.name));
    std::fflush(stdout);
  } else {
    resolve_models(options.rest);
    const char* kv = value_or_environment(options.kv, "MIKV_KV");
    const char* budget = value_or_environment(options.budget, "MIKV_KV_BUDGET");
    if (!kv || !*kv) kv = "mikv";
    if (std::string_view(kv) == "llama:f16") {
      if (budget && *budget) throw UserError("--kv-budget needs a cache of ours; leave out --kv llama:f16");
    } else {
      const auto drop_in = llama::DropIn::parse(kv, budget, value_or_environment(options.report, "MIKV_KV_REPORT"));
      if (!drop_in) throw UserError(drop_in.message());
      llama::use_drop_in(drop_in.value());
      // The server in router mode starts itself again for each model.
      setenv("MIKV_KV", kv, 1);
      if (budget) setenv("MIKV_KV_BUDGET", budget, 1);
    }
  }
  setenv("LLAMA_APP_CMD", tool.name, 1);  // so that the server in router mode starts its children as `mikv server`
  std::string name = fmt::format("mikv {}", tool.name);
  std::vector<char*> arguments{name.data()};
  for (std::string& argument : options.rest) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  return tool.run(int(arguments.size()) - 1, arguments.data());
}

}  // namespace mikv::cli
