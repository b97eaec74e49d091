#include "llama_tools.hpp"

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <string_view>

#include "check.hpp"
#include "errors.hpp"
#include "interpose/drop_in.hpp"
#include "kv_knob.hpp"
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
    "  --kv-bits BITS     in place of --kv: the best measured cache of at most BITS per element (MIKV_KV_BITS)\n"
    "  --kv-quality KLD   or the smallest whose mean KL divergence to the full cache is at most KLD (MIKV_KV_QUALITY)\n"
    "  --kv-budget SIZE   the most that K and V of all contexts of a process may take, e.g. 300MiB (MIKV_KV_BUDGET)\n"
    "  --kv-report FILE   bytes and figures, kept up to date: JSON, or for Prometheus if FILE ends with .prom; of "
    "several\n"
    "                     processes the later ones write FILE.PID.json or .prom (MIKV_KV_REPORT)\n"
    "  -m NAME            also takes the names of `mikv model list`, as -md does\n\n"
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
  std::map<std::string, std::string> ours;  // by name: "--kv"
  std::vector<std::string> rest;
  bool help = false;

  /// What the command line says, else the environment.
  llama::Setting setting(const char* option, const char* variable) const {
    const auto found = ours.find(option);
    return found == ours.end() ? llama::Setting::variable(variable) : llama::Setting{option, found->second};
  }
};

// Takes out what is ours.
Options split(int argc, char** argv) {
  static constexpr std::array kOurs = {"--kv", "--kv-bits", "--kv-quality", "--kv-budget", "--kv-report"};
  Options options;
  for (int i = 0; i < argc; ++i) {
    const std::string arg = argv[i], name = arg.substr(0, arg.find('='));
    options.help |= arg == "-h" || arg == "--help" || arg == "--usage";
    if (std::ranges::find(kOurs, name) == kOurs.end()) {
      options.rest.push_back(arg);
    } else if (name != arg) {
      options.ours[name] = arg.substr(name.size() + 1);
    } else if (i + 1 < argc) {
      options.ours[name] = argv[++i];
    } else {
      throw UserError(fmt::format("{} needs a value; see --help", name));
    }
    if (options.ours.contains(name) && options.ours[name].empty())
      throw UserError(fmt::format("{} is empty; give it a value, or leave it out", name));
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

constexpr std::array kModelFlags = {"-m", "--model"};
constexpr std::array kDraftFlags = {"-md", "--model-draft", "--spec-draft-model"};
constexpr std::array kRepositoryFlags = {"-hf", "-hfr", "--hf-repo"};
constexpr std::array kUrlFlags = {"-mu", "--model-url"};

template <size_t N>
bool is_one_of(const std::array<const char*, N>& flags, const std::string& arg) {
  return std::ranges::find(flags, arg) != flags.end();
}

template <size_t N>
std::string value_of(const std::vector<std::string>& args, const std::array<const char*, N>& flags) {
  for (size_t i = 0; i + 1 < args.size(); ++i) {
    if (is_one_of(flags, args[i])) return args[i + 1];
  }
  return "";
}

// llama.cpp fetches a model: what -m names need not be there yet.
bool fetches_model(const std::vector<std::string>& args) {
  return !value_of(args, kRepositoryFlags).empty() || !value_of(args, kUrlFlags).empty() ||
         std::getenv("LLAMA_ARG_HF_REPO") || std::getenv("LLAMA_ARG_MODEL_URL");
}

// -m and -md may name a model of ours. What is no file is refused here: llama.cpp says so in ten lines, or waits for
// ever.
void resolve_models(std::vector<std::string>& args) {
  const auto known = package_models();
  const bool fetched = fetches_model(args);
  for (size_t i = 0; i + 1 < args.size(); ++i) {
    std::string& model = args[i + 1];
    if (!is_one_of(kModelFlags, args[i]) && !is_one_of(kDraftFlags, args[i])) continue;
    std::error_code failure;
    const bool exists = std::filesystem::exists(model, failure);
    if (!exists && std::ranges::any_of(known, [&](const PackageModel& m) { return m.name == model; })) {
      model = resolve_model(model);
      continue;
    }
    const bool is_list = !exists && model.find(',') != std::string::npos;  // of llama-bench
    if (exists || (!is_list && !fetched)) require_model_file(model, args[i]);
  }
}

double positive_number(const llama::Setting& setting, double least, double most) {
  double value = 0.0;
  const char* const end = setting.value.data() + setting.value.size();
  const auto [rest, error] = std::from_chars(setting.value.data(), end, value);
  if (error != std::errc() || rest != end || !(value >= least && value <= most))
    throw UserError(fmt::format("{} {}: give a number from {} to {}", setting.name, setting.value, least, most));
  return value;
}

// --kv-bits or --kv-quality, if they choose the cache: they do unless --kv does, which is nearer than a variable.
std::optional<KvKnob> knob_of(const Options& options) {
  const auto bits = options.setting("--kv-bits", "MIKV_KV_BITS");
  const auto quality = options.setting("--kv-quality", "MIKV_KV_QUALITY");
  const bool by_option = options.ours.contains("--kv-bits") || options.ours.contains("--kv-quality");
  if (by_option && options.ours.contains("--kv"))
    throw UserError("--kv and --kv-bits or --kv-quality both choose the cache; leave out one");
  if (!by_option && options.setting("--kv", "MIKV_KV").given()) return std::nullopt;
  const bool use_bits = bits.given() && (!by_option || options.ours.contains("--kv-bits"));
  const bool use_quality = quality.given() && (!by_option || options.ours.contains("--kv-quality"));
  if (use_bits && use_quality)
    throw UserError(fmt::format("{} and {} both choose the cache; leave out one", bits.name, quality.name));
  KvKnob knob;
  if (use_bits) knob.bits = positive_number(bits, 0.1, 32.0);
  if (use_quality) knob.quality = positive_number(quality, 1e-6, 100.0);
  return knob.given() ? std::optional(knob) : std::nullopt;
}

// The model that the knob's table is of; empty for a server that loads several, in processes that choose themselves.
std::string model_of(const Options& options) {
  const std::string file = value_of(options.rest, kModelFlags), repository = value_of(options.rest, kRepositoryFlags);
  if (!file.empty()) return file;
  if (!repository.empty()) return unwrap(llama::fetch_hugging_face(repository));
  return llama::Setting::variable("LLAMA_ARG_MODEL").value;
}

std::string pick(const KvKnob& knob, const std::string& path) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  const auto model = unwrap(llama::Model::load(path));
  llama_log_set(nullptr, nullptr);
  return knob.pick(*model);
}

// The server in router mode starts itself again for each model.
void hand_on(const char* variable, const std::string& value) {
  value.empty() ? unsetenv(variable) : setenv(variable, value.c_str(), 1);
}

void choose_cache(const Options& options) {
  llama::Setting kv = options.setting("--kv", "MIKV_KV");
  const auto budget = options.setting("--kv-budget", "MIKV_KV_BUDGET");
  const auto report = options.setting("--kv-report", "MIKV_KV_REPORT");
  const auto knob = knob_of(options);
  hand_on("MIKV_KV_BUDGET", budget.value);
  hand_on("MIKV_KV_REPORT", report.value);
  if (knob) {
    unsetenv("MIKV_KV");
    hand_on("MIKV_KV_BITS", knob->bits > 0.0 ? fmt::format("{}", knob->bits) : "");
    hand_on("MIKV_KV_QUALITY", knob->quality > 0.0 ? fmt::format("{}", knob->quality) : "");
    const std::string model = model_of(options);
    if (model.empty()) return;
    kv = {"--kv", pick(*knob, model)};
  }
  if (!kv.given()) kv.value = "mikv";
  if (!knob) {
    hand_on("MIKV_KV", kv.value);
    for (const char* variable : {"MIKV_KV_BITS", "MIKV_KV_QUALITY"}) unsetenv(variable);
  }
  if (kv.value == "llama:f16") {
    if (budget.given())
      throw UserError(fmt::format("{} needs a cache of mikv; leave it out, or {}", budget.name, kv.written(kv.value)));
    return;
  }
  const std::string own = llama::own_cache_type(options.rest);
  if (!own.empty()) {
    throw UserError(fmt::format(
        "{} asks for a cache type of llama.cpp, but mikv has the KV cache; leave it out, or say --kv llama:f16", own));
  }
  const auto drop_in = llama::DropIn::parse(kv, budget, report);
  if (!drop_in) throw UserError(drop_in.message());
  llama::use_drop_in(drop_in.value());
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
    choose_cache(options);
  }
  setenv("LLAMA_APP_CMD", tool.name, 1);  // so that the server in router mode starts its children as `mikv server`
  std::string name = fmt::format("mikv {}", tool.name);
  std::vector<char*> arguments{name.data()};
  for (std::string& argument : options.rest) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  return tool.run(int(arguments.size()) - 1, arguments.data());
}

}  // namespace mikv::cli
