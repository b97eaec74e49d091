// mikv estimate: what a KV cache of some length will take, before it is tried.
//
// A context with one layer of each shape is filled with random keys and values, and its bytes are counted
// (mikv/estimate.hpp).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <vector>

#include "check.hpp"
#include "commands.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "json_report.hpp"
#include "mikv/estimate.hpp"
#include "model_options.hpp"
#include "stock_bits.hpp"
#include "table.hpp"
#include "terminal.hpp"

namespace mikv::cli {
namespace {

struct EstimateOptions {
  ModelOptions model;
  uint64_t n_ctx = 32768;
  uint32_t n_parallel = 1;
  std::string kv, output;
  bool json = false;
};

// Beyond this bytes grow with tokens in a straight line.
constexpr uint32_t kMeasuredTokens = 8192;

void run(const EstimateOptions& options) {
  const auto choices = parse_kv_option(options.kv);
  const auto model = options.model.load();
  const InterruptEndsAtOnce at_once;
  const uint64_t n_each = options.n_ctx / options.n_parallel;
  if (n_each == 0) throw UserError("--ctx-size is smaller than --parallel; give each sequence one token at least");
  JsonReport report(options.output, "estimate");
  options.model.describe(*model, report.meta());
  report.meta()["n_ctx"] = options.n_ctx;
  report.meta()["n_parallel"] = options.n_parallel;

  std::vector<LayerLoad> layers;
  double elements = 0.0;
  for (const LayerShape& s : model->info().layers) {
    layers.push_back({s, n_each});
    elements += double(n_each) * s.n_kv_heads * (s.head_dim_k + s.head_dim_v);
  }
  elements *= options.n_parallel;

  using enum Table::Align;
  Table table(
      {{"kv", left}, {"full contexts"}, {"bits/element"}, {"of f16"}, {"at most, prompts in turn"}, {"all at once"}});
  for (const llama::KvChoice& choice : choices) {
    const double stock = choice.stock() ? elements / options.n_parallel * stock_bits_per_element(choice) / 8.0 : 0.0;
    const auto [held, prompt] =
        choice.stock() ? CacheBytes{stock, stock}  // allocated as a whole when it starts
                       : unwrap(estimate_cache(layers, *choice.spec, kMeasuredTokens, throw_if_interrupted));
    const double all = held * options.n_parallel;
    // While the last prompt is read the others are compressed.
    const double peak = std::max(all, all - held + prompt);
    const double together = std::max(all, prompt * options.n_parallel);
    table.add_row({choice.name, format_bytes(all), fmt::format("{:.2f}", 8.0 * all / elements),
                   fmt::format("{:.1f} %", 50.0 * all / elements), format_bytes(peak), format_bytes(together)});
    report.add_row({{"kv", choice.name},
                    {"bytes", uint64_t(all)},
                    {"peak_bytes", uint64_t(peak)},
                    {"peak_at_once_bytes", uint64_t(together)},
                    {"f16_bytes", uint64_t(2.0 * elements)},
                    {"bits_per_element", 8.0 * all / elements}});
  }
  if (options.json) {
    fmt::print("{}\n", json_text(report.document(), 1));
  } else {
    fmt::print("{}: {} tokens in {} sequence{}, {} in f16\n", options.model.name(), n_each * options.n_parallel,
               options.n_parallel, options.n_parallel == 1 ? "" : "s", format_bytes(2.0 * elements));
    table.print(stdout);
    if (model->info().sliding_window) {
      fmt::print("Layers with a sliding window of {} tokens hold no more than that: what is measured will be less.\n",
                 model->info().sliding_window);
    }
  }
  report.write();
}

}  // namespace

void add_estimate_command(CLI::App& app) {
  auto options = std::make_shared<EstimateOptions>();
  CLI::App* command = app.add_subcommand("estimate", "what a KV cache of some length will take");
  options->model.add_to(*command);
  command->add_option("-c,--ctx-size", options->n_ctx, "tokens of all sequences together")
      ->check(in_range(1, double(kMaxCells)))
      ->capture_default_str();
  command->add_option("--np,--parallel", options->n_parallel, "sequences, of equal length")
      ->check(in_range(1, 256))
      ->capture_default_str();
  add_kv_option(*command, options->kv, "full,mikv-hq,mikv,mikv-max");
  command->add_flag("--json", options->json, "print JSON instead of a table");
  command->add_option("-o,--output", options->output, "write JSON")->type_name("FILE.json");
  command->footer("Example:\n  mikv estimate -m qwen2.5-coder-1.5b -c 131072 --parallel 4 --kv mikv");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
