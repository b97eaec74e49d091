// mikv info: what this build is, what it runs on, and what each preset costs, for a model where one is given.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "check.hpp"
#include "commands.hpp"
#include "mikv/estimate.hpp"
#include "mikv/simd.hpp"
#include "model_options.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "version.hpp"

namespace mikv::cli {
namespace {

constexpr uint32_t kTokens = 4096;

struct InfoOptions {
  ModelOptions model;
  std::string output;
};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

/// What a cache of kTokens tokens takes in all layers; an error where a layer's shape cannot have the spec. Layers of
/// one shape take the same.
Result<MemoryUsage> measured(const llama::Model& model, const Spec& spec) {
  MemoryUsage total;
  std::vector<std::pair<LayerShape, MemoryUsage>> sizes;
  for (const LayerShape& layer : model.info().layers) {
    const auto same = [&](const auto& size) { return size.first == layer; };
    if (std::ranges::none_of(sizes, same)) {
      const auto size = measure_layer(layer, spec, kTokens, kTokens, throw_if_interrupted);
      if (!size) return size.error();
      sizes.emplace_back(layer, size.value().held);
    }
    total += std::ranges::find_if(sizes, same)->second;
  }
  return total;
}

/// Presets with what they take, but for those that heads of this model cannot have.
void print_presets_for(const llama::Model& model, JsonReport& report) {
  using enum Table::Align;
  Table table(
      {{"preset", left}, {"bits/element"}, {fmt::format("KV of {} tokens", kTokens)}, {"of f16"}, {"keys", left}});
  for (const Preset& preset : presets()) {
    throw_if_interrupted();
    const auto usage = measured(model, unwrap(Spec::parse(preset.name)));
    if (!usage && usage.error().code != ErrorCode::out_of_memory) {
      table.add_row({std::string(preset.name), "-", "-", "-", std::string(preset.keys)});
      report.add_row({{"preset", preset.name}, {"keys", preset.keys}, {"error", usage.message()}});
      continue;
    }
    const MemoryUsage total = unwrap(usage);
    const double bits = total.bits_per_element();
    table.add_row({std::string(preset.name), fmt::format("{:.2f}", bits), format_bytes(double(total.total())),
                   fmt::format("{:.0f} %", 100.0 * bits / 16.0), std::string(preset.keys)});
    report.add_row({{"preset", preset.name},
                    {"keys", preset.keys},
                    {"bits_per_element", bits},
                    {"kv_bytes", total.total()},
                    {"n_tokens", kTokens}});
  }
  table.print(stdout);
}

void print_presets(JsonReport& report) {
  using enum Table::Align;
  Table table({{"preset", left}, {"what it is", left}, {"keys", left}});
  for (const Preset& preset : presets()) {
    table.add_row({std::string(preset.name), std::string(preset.description), std::string(preset.keys)});
    report.add_row({{"preset", preset.name}, {"keys", preset.keys}, {"description", preset.description}});
  }
  table.print(stdout);
  fmt::print("\nWith -m MODEL: the bits per element of each preset in that model.\n");
}

void print_model(const std::string& name, const llama::Model& model) {
  const auto& info = model.info();
  fmt::print("model          {} ({}, {:.2f} billion weights, {})\n", name, info.architecture,
             1e-9 * double(info.n_params), format_bytes(double(info.n_bytes)));
  if (info.layers.empty()) {
    fmt::print("attention      none that keeps keys and values: mikv has nothing to store for this model\n");
    return;
  }
  const LayerShape& layer = info.layers.front();
  fmt::print("attention      {} layers, {} query heads on {} KV heads, head_dim {}{}{}; trained for {} tokens\n",
             info.layers.size(), layer.n_heads, layer.n_kv_heads, layer.head_dim_k,
             layer.head_dim_v == layer.head_dim_k ? "" : fmt::format(" (V {})", layer.head_dim_v),
             info.sliding_window ? fmt::format(", some layers with a window of {}", info.sliding_window) : "",
             info.n_ctx_train);
}

void run(const InfoOptions& options) {
  llama::set_verbose(options.model.verbose);
  JsonReport report(options.output, "info");
  const auto model = options.model.given() ? options.model.load() : nullptr;
  const InterruptEndsAtOnce at_once;
  fmt::print("mikv           {} ({})\n", kVersion, kCommit);
  fmt::print("llama.cpp      {}, unmodified; cache types llama:{{{}}}\n", llama::llama_version(),
             llama::stock_type_names());
  fmt::print("processor      {}\n", cpu_name());
  fmt::print("SIMD target    {} (available: {}; MIKV_TARGET=NAME forces one)\n", simd_target(), joined(simd_targets()));
  report.meta().update({{"llama_cpp", llama::llama_version()}, {"simd_targets", simd_targets()}});
  if (model) {
    options.model.describe(*model, report.meta());
    print_model(options.model.name(), *model);
  }
  fmt::print("\n");
  if (model && !model->info().layers.empty())
    print_presets_for(*model, report);
  else
    print_presets(report);
  report.write();
}

}  // namespace

void add_info_command(CLI::App& app) {
  auto options = std::make_shared<InfoOptions>();
  CLI::App* command = app.add_subcommand("info", "versions, SIMD target, presets and their bits per element");
  options->model.add_to(*command);
  command->add_option("-o,--output", options->output, "write meta data and rows as JSON")->type_name("FILE.json");
  command->footer("Example:\n  mikv info -m qwen2.5-coder-1.5b");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
