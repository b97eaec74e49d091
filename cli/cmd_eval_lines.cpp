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
#include "stopwatch.hpp"
#include "table.hpp"
#include "terminal.hpp"

namespace mikv::cli {
namespace {

constexpr const char* kDefaultKv = "full,h2o,rtn4,mikv-paper,mikv,llama:f16,llama:q8_0,llama:q4_0";

constexpr double kUsualSteps = 7;  // five digits, their end, and the compression before them

struct Options {
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

/// One cache's results so far.
struct Tally {
  size_t n = 0, n_correct = 0;
  double bits_per_element = 0.0, kv_bytes = 0.0;  ///< sums over prompts
  size_t n_prompt_tokens = 0, n_steps = 0;
  double prefill_s = 0.0, decode_s = 0.0;

  double score() const { return n ? double(n_correct) / double(n) : 0.0; }
  double mean_bytes() const { return n ? kv_bytes / double(n) : 0.0; }
  double mean_bits() const { return n ? bits_per_element / double(n) : 0.0; }
  double prefill_rate() const { return prefill_s > 0 ? double(n_prompt_tokens) / prefill_s : 0.0; }
  double decode_rate() const { return decode_s > 0 ? double(n_steps) / decode_s : 0.0; }
};

std::vector<LineCase> make_cases(const Options& options) {
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

std::vector<Prompt> make_prompts(const Options& options, const std::vector<LineCase>& cases,
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
uint32_t context_size(const Options& options, const std::vector<Prompt>& prompts) {
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
std::string answer(const Options& options, const llama::Model& model, const Prompt& prompt, const ArmStart& start,
                   Tally& tally) {
  std::string text;
  llama::Token token = likeliest(start.logits);
  for (uint32_t i = 0; i < options.n_predict && !model.is_end_of_generation(token); ++i) {
    throw_if_interrupted();
    text += model.piece(token);
    if (prompt.has_prefix && answer_is_complete(text)) break;
    const Stopwatch watch;
    check(start.context->decode(token));
    tally.decode_s += watch.seconds();
    ++tally.n_steps;
    token = likeliest(start.context->logits());
  }
  return text;
}

void measure(const Options& options, const llama::Model& model, const Prompt& prompt, Arms& arms, size_t arm,
             Tally& tally) {
  const ArmStart start = arms.start(arm);
  Tally next = tally;  // a prompt counts only when its answer is complete
  const std::string text = answer(options, model, prompt, start, next);
  next.n += 1;
  next.n_correct += answers(text, prompt.expected_number);
  next.bits_per_element += start.usage.bits_per_element();
  next.kv_bytes += double(start.usage.total());
  next.n_prompt_tokens += prompt.tokens.size();
  next.prefill_s += start.prefill_s;
  tally = next;
}

/// In prompt tokens.
double amount_of_work(const std::vector<Prompt>& prompts, const Arms& arms) {
  double work = 0.0;
  for (const Prompt& prompt : prompts) work += double(prompt.tokens.size() * arms.n_prefills());
  return work + double(prompts.size() * arms.size()) * kUsualSteps * kStepInPromptTokens;
}

void print_table(const Arms& arms, const std::vector<Tally>& tallies) {
  using enum Table::Align;
  Table table({{"kv", left},
               {"score"},
               {"correct"},
               {"bits/element"},
               {"KV bytes"},
               {"of f16"},
               {"prefill t/s"},
               {"decode t/s"}});
  for (size_t arm = 0; arm < arms.size(); ++arm) {
    const Tally& t = tallies[arm];
    table.add_row({arms.choice(arm).name, fmt::format("{:.0f} %", 100.0 * t.score()),
                   fmt::format("{}/{}", t.n_correct, t.n), fmt::format("{:.2f}", t.mean_bits()),
                   format_bytes(t.mean_bytes()), fmt::format("{:.0f} %", 100.0 * t.mean_bits() / 16.0),
                   fmt::format("{:.0f}", t.prefill_rate()), fmt::format("{:.1f}", t.decode_rate())});
  }
  table.print(stdout);
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
                    {"decode_tokens_per_s", t.decode_rate()}});
  }
}

void write_plot(const Options& options, const llama::Model& model, const Arms& arms, const std::vector<Tally>& tallies,
                const std::string& subtitle) {
  BarChart chart{.title = "Line retrieval: " + model.info().description,
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

void run(const Options& options) {
  auto choices = parse_kv_option(options.kv);
  const auto cases = make_cases(options);
  JsonReport report(options.output, "eval lines");
  if (!options.plot.empty()) check_writable(options.plot, "--plot");
  const auto model = options.model.load();
  options.knob.add_choice(*model, choices);
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

  std::vector<Tally> tallies(arms.size());
  Progress progress("eval lines", amount_of_work(prompts, arms));
  arms.on_prefill = [&](size_t n_tokens) { progress.advance(double(n_tokens)); };
  try {
    for (size_t i = 0; i < prompts.size(); ++i) {
      arms.set_prompt(prompts[i].tokens);
      for (size_t arm = 0; arm < arms.size(); ++arm) {
        progress.advance(0, fmt::format("prompt {} of {}, {}", i + 1, prompts.size(), arms.choice(arm).name));
        measure(options, *model, prompts[i], arms, arm, tallies[arm]);
        progress.advance(kUsualSteps * kStepInPromptTokens);
      }
    }
  } catch (const Interrupted&) {
    report.meta()["interrupted"] = true;
  }
  progress.clear();
  print_table(arms, tallies);
  add_rows(report, arms, tallies);
  report.write();
  if (!options.plot.empty()) {
    const size_t n_tokens = prompts.front().tokens.size();
    write_plot(options, *model, arms, tallies,
               fmt::format("{} prompts of about {} tokens, greedy; mikv {}", tallies.front().n, n_tokens,
                           report.meta()["commit"].get<std::string>()));
  }
  throw_if_interrupted();
}

}  // namespace

void add_eval_lines_command(CLI::App& eval) {
  auto options = std::make_shared<Options>();
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
  command->add_option("-o,--output", options->output, "write meta data and rows as JSON")->type_name("FILE.json");
  command->add_option("--plot", options->plot, "write a bar chart of scores and bytes")->type_name("FILE.svg");
  command->footer(
      "Example:\n  mikv eval lines -m qwen2.5-coder-0.5b --lines 20 --prompts 20 --seed 7 \\\n"
      "    --kv full,h2o,mikv-paper,mikv,llama:f16,llama:q4_0 -o lines.json --plot lines.svg");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
