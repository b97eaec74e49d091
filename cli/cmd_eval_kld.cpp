// mikv eval kld: how far each cache moves the model's next-token distribution from the full cache's (kld.hpp).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <memory>

#include "check.hpp"
#include "commands.hpp"
#include "kld.hpp"
#include "kv_knob.hpp"
#include "line_chart.hpp"
#include "model_options.hpp"
#include "statistics.hpp"
#include "table.hpp"

namespace mikv::cli {
namespace {

struct EvalKldOptions {
  ModelOptions model;
  std::string kv;
  KvKnob knob;
  KldOptions kld;
  bool positions = false;
  std::string output, plot;
};

// Parts that the fed tokens of a chunk are cut into: columns of the table, and points of the picture.
constexpr size_t kQuarters = 4, kPoints = 16;

// What is drawn as one line: specs that differ in size only.
std::string family(const llama::KvChoice& choice) {
  if (choice.stock()) return "llama.cpp";
  if (choice.spec->mixed()) return "mikv";
  std::string name = choice.spec->preset;
  while (name.size() > 1 && std::isdigit(static_cast<unsigned char>(name.back()))) name.pop_back();
  return name;
}

LineChart chart_of(const std::vector<llama::KvChoice>& choices, const std::vector<KldTally>& tallies,
                   const std::string& subtitle) {
  LineChart chart{"Divergence from the full cache against its size",
                  subtitle,
                  "bits per element, all in",
                  "mean KL divergence",
                  {},
                  true};
  for (size_t arm = 0; arm < choices.size(); ++arm) {
    const std::string name = family(choices[arm]);
    auto line = std::ranges::find(chart.lines, name, &LineChart::Line::label);
    if (line == chart.lines.end()) line = chart.lines.insert(line, {name, choices[arm].stock()});
    line->points.push_back({tallies[arm].mean_bits(), mean(tallies[arm].divergences), choices[arm].name});
  }
  for (auto& line : chart.lines) std::ranges::sort(line.points, {}, &LineChart::Point::x);
  return chart;
}

LineChart chart_by_position(const std::vector<llama::KvChoice>& choices, const std::vector<KldTally>& tallies,
                            const std::string& subtitle, uint32_t n_tokens) {
  LineChart chart{"Divergence from the full cache as a text grows",
                  subtitle,
                  "tokens after the prompt",
                  "mean KL divergence",
                  {},
                  true};
  for (size_t arm = 0; arm < choices.size(); ++arm) {
    const auto means = tallies[arm].by_position(kPoints);
    auto& line = chart.lines.emplace_back(choices[arm].name, choices[arm].stock());
    for (size_t i = 0; i < means.size(); ++i) line.points.push_back({(double(i) + 0.5) * n_tokens / kPoints, means[i]});
  }
  return chart;
}

void print_quarters(const std::vector<llama::KvChoice>& choices, const std::vector<KldTally>& tallies) {
  using enum Table::Align;
  Table table({{"kv", left}, {"1st quarter"}, {"2nd"}, {"3rd"}, {"4th"}, {"4th / 2nd"}});
  for (size_t arm = 0; arm < choices.size(); ++arm) {
    const auto means = tallies[arm].by_position(kQuarters);
    std::vector<std::string> cells{choices[arm].name};
    for (const double mean : means) cells.push_back(fmt::format("{:.4f}", mean));
    cells.resize(kQuarters + 1, "-");
    cells.push_back(means.empty() || means[1] <= 0.0 ? "-" : fmt::format("{:.2f}", means[3] / means[1]));
    table.add_row(cells);
  }
  std::puts("\nMean KLD by position after the prompt");
  table.print(stdout);
}

void report_rows(const std::vector<llama::KvChoice>& choices, const std::vector<KldTally>& tallies,
                 JsonReport& report) {
  using enum Table::Align;
  Table table({{"kv", left}, {"bits/element"}, {"mean KLD"}, {"median"}, {"99 %"}, {"99.9 %"}, {"max"}, {"same top"}});
  for (size_t arm = 0; arm < choices.size(); ++arm) {
    Json row = {{"kv", choices[arm].name}};
    row.update(tallies[arm].to_json());
    row["by_position"] = tallies[arm].by_position(kPoints);
    const auto number = [&](const char* key) { return fmt::format("{:.4f}", row[key].get<double>()); };
    table.add_row({choices[arm].name, fmt::format("{:.2f}", tallies[arm].mean_bits()), number("mean"), number("median"),
                   number("p99"), number("p999"), number("max"),
                   fmt::format("{:.1f} %", 100.0 * tallies[arm].same_top())});
    report.add_row(std::move(row));
  }
  table.print(stdout);
}

void run(const EvalKldOptions& options) {
  auto choices = parse_kv_option(options.kv);
  if (options.positions && options.kld.n_tokens < kPoints)
    throw UserError(fmt::format("--positions needs --tokens {} or more", kPoints));
  const std::string text = options.kld.contents();
  JsonReport report(options.output, "eval kld");
  if (!options.plot.empty()) check_writable(options.plot, "--plot");
  RowLog rows(options.output);
  options.knob.check();
  const auto model = options.model.load();
  options.knob.add_choice(*model, choices);
  const auto chunks = options.kld.chunks_of(text, *model);
  rows.resume({{"model", fingerprint(model->info())}, {"caches", names_of(choices)}, {"text", text_fingerprint(text)}},
              choices.size() * chunks.size());
  options.model.describe(*model, report.meta());
  options.kld.describe(report.meta());
  const KldResult result = measure_kld(*model, choices, chunks, options.kld, options.model.threads(), "eval kld", rows);
  if (result.interrupted) report.meta()["interrupted"] = true;
  report_rows(choices, result.tallies, report);
  if (options.positions) print_quarters(choices, result.tallies);
  report.write();
  if (!options.plot.empty()) {
    const std::string subtitle = fmt::format("{}, {} + {} tokens, {} chunks", options.model.name(),
                                             options.kld.n_context, options.kld.n_tokens, options.kld.n_chunks);
    write_file(options.plot,
               svg(options.positions ? chart_by_position(choices, result.tallies, subtitle, options.kld.n_tokens)
                                     : chart_of(choices, result.tallies, subtitle)));
  }
  throw_if_interrupted();
}

}  // namespace

void add_eval_kld_command(CLI::App& eval) {
  auto options = std::make_shared<EvalKldOptions>();
  CLI::App* command = eval.add_subcommand("kld", "KL divergence of the next token's distribution to the full cache's");
  options->model.add_to(*command);
  add_kv_option(*command, options->kv, "mikv,mikv-paper,h2o,rtn4,llama:q8_0,llama:q4_0");
  options->knob.add_to(*command);
  options->kld.add_to(*command);
  command->add_flag("--positions", options->positions,
                    "say by position after the prompt too, and draw that: does the error grow?");
  command
      ->add_option("-o,--output", options->output,
                   "write meta data and rows as JSON; FILE.rows.jsonl has them as they come, and an interrupted "
                   "run resumes from there")
      ->type_name("FILE.json");
  command->add_option("--plot", options->plot, "draw divergence against bits as SVG")->type_name("FILE.svg");
  command->footer(
      "Example:\n  mikv eval kld -m qwen2.5-coder-1.5b --text book.txt --context 1024 --tokens 64 --chunks 5 \\\n"
      "    --kv mikv,mikv-paper,llama:q8_0,llama:q4_0 -o kld.json\n"
      "  mikv eval kld -m qwen2.5-coder-0.5b --text book.txt --chunks 1 --tokens 8000 --generate --positions \\\n"
      "    --kv mikv,mikv-max,llama:q4_0 --plot kld.svg");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
