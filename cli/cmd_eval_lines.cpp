// mikv eval lines: LongEval line retrieval, the same prompts under every cache.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "arms.hpp"
#include "bar_chart.hpp"
#include "check.hpp"
#include "commands.hpp"
#include "kv_knob.hpp"
#include "line_retrieval.hpp"
#include "model_options.hpp"
#include "progress.hpp"
#include "row_log.hpp"
#include "stopwatch.hpp"
#include "table.hpp"
#include "terminal.hpp"

namespace mikv::cli {
namespace {

constexpr const char* kDefaultKv = "full,h2o,rtn4,mikv-paper,mikv,llama:f16,llama:q8_0,llama:q4_0";

constexpr double kUsualSteps = 7;  // five digits, their end, and the compression before them

struct EvalLinesOptions {
  ModelOptions model;
  std::string kv;
  KvKnob knob;
  uint32_t n_lines = 20;
  uint32_t n_prompts = 20;
  uint64_t seed = 7;
  std::string file;
  bool prefix = true;
  bool raw = false;
  uint32_t n_predict = 24;
  uint32_t n_ctx = 0;
  uint32_t n_ubatch = 256;
  std::string output;
  std::string plot;
};

struct Prompt {
  std::vector<llama::Token> tokens;
  std::string expected_number;
  bool has_prefix = false;
};

/// Generation is timed in answers that go on for this many tokens after the first one. Shorter ones tell of everything
/// else; `mikv bench decode` measures it.
constexpr size_t kLeastTimedSteps = 64;

/// One cache's answer to one prompt.
struct Outcome {
  std::string text;
  bool correct = false;
  double bits_per_element = 0.0, kv_bytes = 0.0;
  size_t n_prompt_tokens = 0, n_steps = 0;  ///< n_steps: those that are timed
  double prefill_s = 0.0, decode_s = 0.0;
};

Json row_of(const Outcome& outcome) {
  return {{"correct", outcome.correct},
          {"answer", outcome.text},
          {"bits_per_element", outcome.bits_per_element},
          {"kv_bytes", outcome.kv_bytes},
          {"prompt_tokens", outcome.n_prompt_tokens},
          {"prefill_s", outcome.prefill_s},
          {"timed_steps", outcome.n_steps},
          {"timed_s", outcome.decode_s}};
}

Outcome outcome_of(const Json& row) {
  return {.text = row.at("answer"),
          .correct = row.at("correct"),
          .bits_per_element = row.at("bits_per_element"),
          .kv_bytes = row.at("kv_bytes"),
          .n_prompt_tokens = row.at("prompt_tokens"),
          .n_steps = row.at("timed_steps"),
          .prefill_s = row.at("prefill_s"),
          .decode_s = row.at("timed_s")};
}

/// One cache's results so far.
struct Tally {
  size_t n = 0, n_correct = 0;
  double bits_per_element = 0.0, kv_bytes = 0.0;  ///< sums over prompts
  size_t n_prompt_tokens = 0, n_steps = 0;
  double prefill_s = 0.0, decode_s = 0.0;

  void add(const Outcome& outcome) {
    n += 1;
    n_correct += outcome.correct;
    bits_per_element += outcome.bits_per_element;
    kv_bytes += outcome.kv_bytes;
    n_prompt_tokens += outcome.n_prompt_tokens;
    prefill_s += outcome.prefill_s;
    if (outcome.n_steps < kLeastTimedSteps) return;
    n_steps += outcome.n_steps;
    decode_s += outcome.decode_s;
  }

  double score() const { return n ? double(n_correct) / double(n) : 0.0; }
  double mean_bytes() const { return n ? kv_bytes / double(n) : 0.0; }
  double mean_bits() const { return n ? bits_per_element / double(n) : 0.0; }
  double prefill_rate() const { return prefill_s > 0 ? double(n_prompt_tokens) / prefill_s : 0.0; }
  bool has_decode_rate() const { return n_steps > 0 && decode_s > 0; }
  double decode_rate() const { return has_decode_rate() ? double(n_steps) / decode_s : 0.0; }
};

std::vector<LineCase> make_cases(const EvalLinesOptions& options) {
  if (!options.file.empty()) {
    auto cases = read_line_cases(options.file);
    if (cases.size() > options.n_prompts) {
      fmt::print(stderr, "mikv: {} of the {} prompts of {}; --prompts {} takes all\n", options.n_prompts, cases.size(),
                 options.file, cases.size());
      cases.resize(options.n_prompts);
    }
    return cases;
  }
  std::vector<LineCase> cases;
  for (uint32_t i = 0; i < options.n_prompts; ++i) cases.push_back(make_line_case(options.n_lines, options.seed, i));
  return cases;
}

std::vector<Prompt> make_prompts(const EvalLinesOptions& options, const std::vector<LineCase>& cases,
                                 const llama::Model& model) {
  const bool templated = !options.raw && model.has_chat_template();
  std::vector<Prompt> prompts;
  for (const LineCase& line_case : cases) {
    std::string text = templated ? unwrap(model.chat_prompt(line_case.prompt)) : line_case.prompt + "\n";
    const std::string prefix = options.prefix ? line_case.answer_prefix() : "";
    prompts.push_back({model.tokenize(text + prefix, true), line_case.expected_number, !prefix.empty()});
  }
  return prompts;
}

/// The context that the longest prompt and its answer need, or the user's.
uint32_t context_size(const EvalLinesOptions& options, const std::vector<Prompt>& prompts) {
  size_t longest = 0;
  for (const Prompt& prompt : prompts) longest = std::max(longest, prompt.tokens.size());
  if (options.n_ctx == 0) return uint32_t((longest + options.n_predict + 255) / 256 * 256);
  require_fits(longest + options.n_predict, options.n_ctx, "the longest prompt with its answer");
  return options.n_ctx;
}

llama::Token likeliest(std::span<const float> logits) {
  return llama::Token(std::ranges::max_element(logits) - logits.begin());
}

/// Greedy; stops where a number that follows the prefix has ended, because nothing after it can change the answer.
void answer(const EvalLinesOptions& options, const llama::Model& model, const Prompt& prompt, const ArmStart& start,
            Outcome& outcome) {
  llama::Token token = likeliest(start.logits);
  for (uint32_t i = 0; i < options.n_predict && !model.is_end_of_generation(token); ++i) {
    throw_if_interrupted();
    outcome.text += model.piece(token);
    if (prompt.has_prefix && answer_is_complete(outcome.text)) break;
    const Stopwatch watch;
    check(start.context->decode(token));
    if (i > 0) {  // the first step finds nothing in the processor's caches
      outcome.decode_s += watch.seconds();
      ++outcome.n_steps;
    }
    token = likeliest(start.context->logits());
  }
}

Outcome measure(const EvalLinesOptions& options, const llama::Model& model, const Prompt& prompt, Arms& arms,
                size_t arm) {
  const ArmStart start = arms.start(arm);
  Outcome outcome{.bits_per_element = start.usage.bits_per_element(),
                  .kv_bytes = double(start.usage.total()),
                  .n_prompt_tokens = prompt.tokens.size(),
                  .prefill_s = start.prefill_s};
  answer(options, model, prompt, start, outcome);
  outcome.correct = answers(outcome.text, prompt.expected_number);
  return outcome;
}

size_t n_missing(const RowLog& rows, const Arms& arms, size_t prompt) {
  size_t n = 0;
  for (size_t arm = 0; arm < arms.size(); ++arm) n += !rows.has(prompt, arms.choice(arm).name);
  return n;
}

/// In prompt tokens.
double amount_of_work(const std::vector<Prompt>& prompts, const Arms& arms, const RowLog& rows) {
  double work = 0.0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const size_t n = n_missing(rows, arms, i);
    work += double(prompts[i].tokens.size() * std::min(arms.n_prefills(), n)) +
            double(n) * kUsualSteps * kStepInPromptTokens;
  }
  return work;
}

void measure_missing(const EvalLinesOptions& options, const llama::Model& model, const std::vector<Prompt>& prompts,
                     Arms& arms, RowLog& rows, Progress& progress) {
  for (size_t i = 0; i < prompts.size(); ++i) {
    arms.set_prompt(prompts[i].tokens);
    for (size_t arm = 0; arm < arms.size(); ++arm) {
      const std::string& kv = arms.choice(arm).name;
      if (rows.has(i, kv)) continue;
      progress.advance(0, fmt::format("prompt {} of {}, {}", i + 1, prompts.size(), kv));
      rows.add(i, kv, row_of(measure(options, model, prompts[i], arms, arm)));
      progress.advance(kUsualSteps * kStepInPromptTokens);
    }
  }
  rows.finish();
}

std::vector<Tally> tallies_of(const RowLog& rows, const Arms& arms, size_t n_prompts) {
  std::vector<Tally> tallies(arms.size());
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    for (size_t i = 0; i < n_prompts; ++i) {
      const std::string& kv = arms.choice(arm).name;
      if (rows.has(i, kv)) tallies[arm].add(outcome_of(rows.row(i, kv)));
    }
  }
  return tallies;
}

void print_table(const Arms& arms, const std::vector<Tally>& tallies) {
  using enum Table::Align;
  std::vector<Table::Column> columns = {{"kv", left}, {"score"},  {"correct"},    {"bits/element"},
                                        {"KV bytes"}, {"of f16"}, {"prefill t/s"}};
  const bool timed = std::ranges::all_of(tallies, &Tally::has_decode_rate);
  if (timed) columns.push_back({"decode t/s"});
  Table table(columns);
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    const Tally& t = tallies[arm];
    std::vector<std::string> cells = {arms.choice(arm).name,
                                      fmt::format("{:.0f} %", 100.0 * t.score()),
                                      fmt::format("{}/{}", t.n_correct, t.n),
                                      fmt::format("{:.2f}", t.mean_bits()),
                                      format_bytes(t.mean_bytes()),
                                      fmt::format("{:.0f} %", 100.0 * t.mean_bits() / 16.0),
                                      fmt::format("{:.0f}", t.prefill_rate())};
    if (timed) cells.push_back(fmt::format("{:.1f}", t.decode_rate()));
    table.add_row(std::move(cells));
  }
  table.print(stdout);
}

/// Where an uncompressed cache fails as well, the others' scores tell nothing.
void warn_if_nobody_can(const Arms& arms, const std::vector<Tally>& tallies) {
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    const std::string& kv = arms.choice(arm).name;
    if ((kv == "full" || kv == "llama:f16") && tallies[arm].n > 0 && tallies[arm].n_correct == 0) {
      fmt::print(stderr,
                 "mikv: {} finds none either: this is too hard for the model; try fewer --lines or another model\n",
                 kv);
      return;
    }
  }
}

void add_rows(JsonReport& report, const Arms& arms, const std::vector<Tally>& tallies) {
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    const Tally& t = tallies[arm];
    report.add_row({{"kv", arms.choice(arm).name},
                    {"score", t.score()},
                    {"correct", t.n_correct},
                    {"n", t.n},
                    {"bits_per_element", t.mean_bits()},
                    {"kv_bytes", t.mean_bytes()},
                    {"prefill_tokens_per_s", t.prefill_rate()},
                    {"decode_tokens_per_s", t.has_decode_rate() ? Json(t.decode_rate()) : Json()}});
  }
}

void write_plot(const EvalLinesOptions& options, const Arms& arms, const std::vector<Tally>& tallies,
                const std::string& subtitle) {
  BarChart chart{.title = "Line retrieval: " + options.model.name(),
                 .subtitle = subtitle,
                 .panels = {{"correct answers", {}}, {"KV cache at the end of the prompt", {}}}};
  double largest = 0.0;
  for (const Tally& t : tallies) largest = std::max(largest, t.mean_bytes());
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    const Tally& t = tallies[arm];
    chart.rows.push_back({arms.choice(arm).name, arms.choice(arm).stock()});
    chart.panels[0].bars.push_back({t.score(), fmt::format("{:.0f} %", 100.0 * t.score())});
    chart.panels[1].bars.push_back({largest > 0 ? t.mean_bytes() / largest : 0.0,
                                    fmt::format("{} ({:.1f} bits)", format_bytes(t.mean_bytes()), t.mean_bits())});
  }
  write_file(options.plot, svg(chart));
}

void run(const EvalLinesOptions& options) {
  auto choices = parse_kv_option(options.kv);
  const auto cases = make_cases(options);
  JsonReport report(options.output, "eval lines");
  if (!options.plot.empty()) check_writable(options.plot, "--plot");
  RowLog rows(options.output);
  options.knob.check();
  const auto model = options.model.load();
  options.knob.add_choice(*model, choices);
  warn_beyond_training(*model, options.n_ctx);
  const auto prompts = make_prompts(options, cases, *model);
  llama::EngineOptions context_options{.n_ctx = context_size(options, prompts),
                                       .n_ubatch = options.n_ubatch,
                                       .n_threads = options.model.threads(),
                                       .should_stop = interrupted};
  Arms arms(*model, choices, context_options);
  options.model.describe(*model, report.meta());
  report.meta().update({{"seed", options.seed},
                        {"lines", options.file.empty() ? Json(options.n_lines) : Json()},
                        {"prompts", prompts.size()},
                        {"file", options.file.empty() ? Json() : Json(options.file)},
                        {"prefix", options.prefix},
                        {"n_ctx", context_options.n_ctx},
                        {"n_ubatch", options.n_ubatch}});

  rows.resume({{"model", fingerprint(model->info())},
               {"caches", names_of(choices)},
               {"file", options.file.empty() ? Json() : Json(text_fingerprint(read_file(options.file, "test cases")))}},
              prompts.size() * arms.size());
  bool stopped = false;
  {
    Progress progress("eval lines", amount_of_work(prompts, arms, rows));
    arms.on_prefill = [&](size_t n_tokens) { progress.advance(double(n_tokens)); };
    try {
      measure_missing(options, *model, prompts, arms, rows, progress);
    } catch (const Interrupted&) {
      stopped = true;
    } catch (const UserError& error) {
      throw UserError(error.what() + rows.hint());
    }
  }
  if (stopped) report.meta()["interrupted"] = true;
  if (stopped) rows.say_interrupted();
  const auto tallies = tallies_of(rows, arms, prompts.size());
  print_table(arms, tallies);
  warn_if_nobody_can(arms, tallies);
  add_rows(report, arms, tallies);
  report.write();
  if (!options.plot.empty()) {
    const size_t n_tokens = prompts.front().tokens.size();
    write_plot(options, arms, tallies,
               fmt::format("{} prompts of about {} tokens, greedy; mikv {}", tallies.front().n, n_tokens,
                           report.meta()["commit"].get<std::string>()));
  }
  throw_if_interrupted();
}

}  // namespace

void add_eval_lines_command(CLI::App& eval) {
  auto options = std::make_shared<EvalLinesOptions>();
  CLI::App* command = eval.add_subcommand("lines", "LongEval line retrieval: is a number of the prompt still found?");
  options->model.add_to(*command);
  add_kv_option(*command, options->kv, kDefaultKv);
  options->knob.add_to(*command);
  auto* lines = command->add_option("--lines", options->n_lines, "lines in a prompt; about 20 tokens each")
                    ->type_name("N")
                    ->check(in_range(1, max_lines() / 2))
                    ->capture_default_str();
  command->add_option("--prompts", options->n_prompts, "prompts to try, at most")
      ->type_name("N")
      ->check(in_range(1, 100000))
      ->capture_default_str();
  command->add_option("-s,--seed", options->seed, "of the generated prompts")->type_name("N")->capture_default_str();
  command
      ->add_option("--file", options->file, "LongEval's own test cases instead: .jsonl with prompt and expected_number")
      ->type_name("FILE")
      ->excludes(lines);
  command->add_flag("--prefix,!--no-prefix", options->prefix,
                    "give the answer's beginning, \"The <REGISTER_CONTENT> in line NAME is <\" (on by default)");
  command->add_flag("--raw", options->raw, "no chat template");
  command->add_option("-n,--predict", options->n_predict, "longest answer in tokens")
      ->type_name("N")
      ->check(in_range(1, 4096))
      ->capture_default_str();
  command->add_option("-c,--ctx-size", options->n_ctx, "context in tokens; 0: what the prompts need")
      ->type_name("N")
      ->capture_default_str();
  add_ubatch_option(*command, options->n_ubatch);
  command
      ->add_option("-o,--output", options->output,
                   "write meta data and rows as JSON; FILE.rows.jsonl has each answer as it comes, and an "
                   "interrupted run resumes from there")
      ->type_name("FILE.json");
  command->add_option("--plot", options->plot, "write a bar chart of scores and bytes")->type_name("FILE.svg");
  command->footer(
      "Example:\n  mikv eval lines -m qwen2.5-coder-0.5b --lines 20 --prompts 20 --seed 7 \\\n"
      "    --kv full,h2o,mikv-paper,mikv,llama:f16,llama:q4_0 -o lines.json --plot lines.svg\n"
      "Answers are too short to time generation; `mikv bench decode` does that. With -n 100 --no-prefix they may be "
      "long\n"
      "enough: a column of decode tokens/s needs 64 tokens of one answer.");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
