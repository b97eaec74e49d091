// mikv tune: measures a ladder of specs on a model, for --kv-quality and --kv-bits (kv_knob.hpp).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>

#include "check.hpp"
#include "commands.hpp"
#include "kld.hpp"
#include "kv_knob.hpp"
#include "model_options.hpp"
#include "table.hpp"

namespace mikv::cli {
namespace {

struct TuneOptions {
  ModelOptions model;
  KldOptions kld;
  std::string output;
};

/// Whether the table that was written is the one that the knobs read by themselves.
void say_who_reads(const std::string& path, const llama::ModelInfo& info) {
  const std::string sidecar = sidecar_path(info);
  std::error_code failure;
  if (std::filesystem::equivalent(path, sidecar, failure) && !failure) {
    fmt::print(stderr, "mikv: wrote {}; --kv-quality and --kv-bits pick from it for this model\n", path);
  } else {
    fmt::print(stderr,
               "mikv: wrote {}; --kv-quality and --kv-bits pick from it with --kv-table {}, without that from {}\n",
               path, path, std::filesystem::exists(sidecar, failure) ? sidecar : "the built-in table");
  }
}

/// Models may lie where nothing can be written.
void check_sidecar_folder(const std::string& path) {
  try {
    check_writable(path, "the table");
  } catch (const UserError& error) {
    throw UserError(std::string(error.what()) + ", with -o FILE.json");
  }
}

void run(const TuneOptions& options) {
  const std::string text = options.kld.contents();
  const auto model = options.model.load();
  const std::string path = options.output.empty() ? sidecar_path(model->info()) : options.output;
  if (options.output.empty()) check_sidecar_folder(path);
  JsonReport report(path, "tune");
  RowLog rows(path);
  const auto chunks = options.kld.chunks_of(text, *model);
  options.model.describe(*model, report.meta());
  options.kld.describe(report.meta());
  report.meta()["fingerprint"] = fingerprint(model->info());

  std::vector<llama::KvChoice> choices;
  for (const MeasuredSpec& measured : measured_specs())
    choices.push_back(unwrap(llama::KvChoice::parse(measured.spec)));
  std::ranges::reverse(choices);  // from the smallest to the largest, as its table lists them
  rows.resume({{"model", fingerprint(model->info())}, {"caches", names_of(choices)}, {"text", text_fingerprint(text)}},
              choices.size() * chunks.size());
  const KldResult result = measure_kld(*model, choices, chunks, options.kld, options.model.threads(), "tune", rows);
  throw_if_interrupted();  // half a table would pick by other text for some specs than for others: the old one stays

  using enum Table::Align;
  Table table({{"kv", left}, {"bits/element"}, {"mean KLD"}, {"99 %"}, {"same top"}});
  for (size_t i = 0; i < choices.size(); ++i) {
    Json row = {{"kv", choices[i].name}};
    row.update(result.tallies[i].to_json());
    table.add_row({choices[i].name, fmt::format("{:.2f}", result.tallies[i].mean_bits()),
                   fmt::format("{:.4f}", row["mean"].get<double>()), fmt::format("{:.4f}", row["p99"].get<double>()),
                   fmt::format("{:.1f} %", 100.0 * result.tallies[i].same_top())});
    report.add_row(std::move(row));
  }
  table.print(stdout);
  report.write();
  say_who_reads(path, model->info());
}

}  // namespace

void add_tune_command(CLI::App& app) {
  auto options = std::make_shared<TuneOptions>();
  CLI::App* command =
      app.add_subcommand("tune", "measure caches of many sizes on a model, for --kv-quality and --kv-bits");
  options->model.add_to(*command);
  options->kld.add_to(*command);
  command
      ->add_option("-o,--output", options->output,
                   "where to write the table (default: MODEL.gguf.mikv.json beside the model, where --kv-quality and "
                   "--kv-bits look for it; another one is named with --kv-table)")
      ->type_name("FILE.json");
  command->footer(
      "Example:\n  mikv tune -m qwen2.5-coder-1.5b --text book.txt\n"
      "  mikv run -m qwen2.5-coder-1.5b --kv-quality 0.01 -p \"Explain what a KV cache is.\"");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
