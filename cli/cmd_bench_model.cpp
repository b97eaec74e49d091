// mikv bench decode, prefill and wait: speed of the whole model at a depth of context, ours and llama.cpp's in one run.
//
// The arms take turns. Under decode and prefill every arm is brought to the same prompt once, and a repetition lets
// each of them generate, or take in, some tokens from that prompt's end. Under wait a repetition begins with the
// reading of the prompt. Ratios are taken within a repetition, so that slow moments of the machine cancel.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>

#include "arms.hpp"
#include "check.hpp"
#include "commands.hpp"
#include "line_chart.hpp"
#include "line_retrieval.hpp"
#include "model_options.hpp"
#include "noise.hpp"
#include "progress.hpp"
#include "statistics.hpp"
#include "stopwatch.hpp"
#include "table.hpp"
#include "terminal.hpp"

namespace mikv::cli {
namespace {

constexpr const char* kReference = "full";

// Our uncompressed cache and llama.cpp's f16 hold the same numbers, summed in another order; the model's own int8
// activations amplify that to 0.02 at most on SmolLM2. A wrong cell or position gives 1 and more.
constexpr double kMaxDivergence = 0.1;

/// What is timed.
struct Workload {
  const char* name;
  bool prefill;       ///< tokens come at once, as a prompt's do; otherwise one after the other
  bool reads_prompt;  ///< the time of the prompt counts
  double token_cost;  ///< of the progress display, in prompt tokens
};
constexpr Workload kDecode{"decode", false, false, kStepInPromptTokens};
constexpr Workload kPrefill{"prefill", true, false, 1.0};
constexpr Workload kWait{"wait", false, true, kStepInPromptTokens};

struct BenchModelOptions {
  BenchModelOptions(const Workload& what, uint32_t n) : workload(what), n_new(n) {}

  const Workload& workload;
  ModelOptions model;
  std::string kv;
  std::vector<uint32_t> depths = {0, 4096};
  uint32_t n_new;  ///< tokens that a repetition processes
  int n_repetitions = 5;
  uint64_t seed = 7;
  std::string output;
  std::string plot;

  std::string command() const { return std::string("bench ") + workload.name; }
};

/// One value per repetition.
struct Timing {
  std::vector<double> speed;          ///< tokens/s, or answers/s under wait
  std::vector<double> reading_s;      ///< of the prompt, without its compression
  std::vector<double> compression_s;  ///< of the prompt, before something is generated
  MemoryUsage usage;
};

/// Natural enough text of any length, the same on every machine.
std::vector<llama::Token> make_tokens(const llama::Model& model, size_t n, uint64_t seed) {
  std::vector<llama::Token> tokens;
  for (uint32_t i = 0; tokens.size() < n; ++i) {
    const auto more = model.tokenize(make_line_case(100, seed, i).prompt, i == 0);
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  tokens.resize(n);
  return tokens;
}

class DepthRun {
 public:
  DepthRun(const BenchModelOptions& options, const llama::Model& model, Arms& arms, Progress& progress)
      : options_(options), arms_(arms), progress_(progress) {
    const uint32_t deepest = *std::ranges::max_element(options.depths);
    tokens_ = make_tokens(model, std::max<size_t>(deepest, 2) + options.n_new + 1, options.seed);
  }

  std::vector<Timing> run(uint32_t depth) {
    // Two tokens stand for an empty context: a step of one token would count as generation.
    n_prompt_ = std::max(depth, 2u);
    depth_ = depth;
    set_prompt();
    const bool reads = options_.workload.reads_prompt;
    std::vector<std::vector<double>> first(arms_.size());
    for (size_t arm = 0; arm < arms_.size() && !reads; ++arm) first[arm] = first_distribution(arm);
    if (!reads) check_answers(first);
    std::vector<Timing> timings(arms_.size());
    for (int repetition = 0; repetition < options_.n_repetitions; ++repetition) {
      if (reads) set_prompt();  // so that it is read anew
      for (size_t arm = 0; arm < arms_.size(); ++arm) time(arm, timings[arm], repetition, first[arm]);
      if (reads && repetition == 0) check_answers(first);  // with what was read: reading once more takes minutes
    }
    return timings;
  }

 private:
  size_t index_of(const std::string& name) const {
    for (size_t arm = 0; arm < arms_.size(); ++arm) {
      if (arms_.choice(arm).name == name) return arm;
    }
    throw UserError(options_.command() + " needs " + name);
  }

  void set_prompt() { arms_.set_prompt({tokens_.begin(), tokens_.begin() + n_prompt_}); }

  std::vector<double> first_distribution(size_t arm) {
    const ArmStart start = begin(arm);
    work(*start.context, 0, options_.workload.prefill ? options_.n_new : 1);
    return log_softmax(start.context->logits());
  }

  ArmStart begin(size_t arm) {
    progress_.advance(0, fmt::format("depth {}: {}", depth_, arms_.choice(arm).name));
    return arms_.start(arm);
  }

  /// Processes n tokens of the text that follows the prompt, from the given one on.
  void work(llama::EngineContext& context, uint32_t first, uint32_t n) {
    const std::span<const llama::Token> tokens(tokens_.data() + n_prompt_ + first, n);
    if (options_.workload.prefill) {
      check(context.prefill(tokens));
      check(context.end_prompt());  // what was taken in is compressed: it belongs to the work
      return;
    }
    for (const llama::Token token : tokens) {
      throw_if_interrupted();
      check(context.decode(token));
    }
  }

  /// first: of each arm, the distribution after tokens that followed the prompt, the same for all.
  void check_answers(const std::vector<std::vector<double>>& first) const {
    const auto& stock = first[index_of(kBaseline)];
    const double divergence = kl_divergence(stock, first[index_of(kReference)]);
    if (!(divergence < kMaxDivergence)) {
      throw UserError(
          fmt::format("refusing to time: at depth {} {} and {} disagree (KL divergence {:.2g}); please report it",
                      depth_, kReference, kBaseline, divergence));
    }
    for (size_t arm = 0; arm < arms_.size(); ++arm) {
      if (!std::isfinite(kl_divergence(stock, first[arm]))) {
        throw UserError(fmt::format("refusing to time: {} gives no finite answer at depth {}; please report it",
                                    arms_.choice(arm).name, depth_));
      }
    }
  }

  /// first: takes the distribution after the answer where reading is timed, so that it has read what is compressed.
  void time(size_t arm, Timing& timing, int repetition, std::vector<double>& first) {
    const ArmStart start = begin(arm);
    const Workload& workload = options_.workload;
    timing.usage = start.usage;
    timing.reading_s.push_back(start.prefill_s - start.compression_s);
    timing.compression_s.push_back(start.compression_s);
    const bool warms_up = !workload.prefill && !workload.reads_prompt;  // builds the graph, wakes the threads
    if (warms_up) work(*start.context, 0, 1);
    const Stopwatch watch;
    work(*start.context, warms_up ? 1 : 0, options_.n_new);
    timing.speed.push_back(workload.reads_prompt ? 1.0 / (start.prefill_s + watch.seconds())
                                                 : double(options_.n_new) / watch.seconds());
    if (workload.reads_prompt && repetition == 0) first = log_softmax(start.context->logits());
    progress_.advance(workload.token_cost * options_.n_new,
                      fmt::format("depth {}: repetition {} of {}, {}", depth_, repetition + 1, options_.n_repetitions,
                                  arms_.choice(arm).name));
  }

  const BenchModelOptions& options_;
  Arms& arms_;
  Progress& progress_;
  std::vector<llama::Token> tokens_;
  uint32_t n_prompt_ = 0, depth_ = 0;
};

std::vector<Table::Column> columns_of(const Workload& workload) {
  using enum Table::Align;
  const std::string what = workload.reads_prompt ? "wait, s" : "tokens/s";
  std::vector<Table::Column> columns{{"kv", left}, {"depth"}, {what}, {"min"}, {"max"}, {"x llama:f16"}, {"KV bytes"}};
  if (workload.reads_prompt) columns.push_back({"reading, s"});
  if (!workload.prefill) columns.push_back({"compression, s"});
  return columns;
}

void report_rows(const Workload& workload, const Arms& arms, size_t n_shown, uint32_t depth,
                 const std::vector<Timing>& timings, Table& table, JsonReport& report, LineChart& chart) {
  size_t baseline = 0;
  while (arms.choice(baseline).name != kBaseline) ++baseline;
  const std::string unit = workload.reads_prompt ? "wait_s" : "tokens_per_s";
  for (size_t arm = 0; arm < n_shown; ++arm) {
    const Timing& timing = timings[arm];
    std::vector<double> ratios, shown = timing.speed;
    for (size_t i = 0; i < shown.size(); ++i) {
      ratios.push_back(timing.speed[i] / timings[baseline].speed[i]);
      if (workload.reads_prompt) shown[i] = 1.0 / shown[i];
    }
    const double ratio = median(ratios), bits = timing.usage.bits_per_element();
    chart.lines[arm].points.push_back({double(depth), median(shown)});
    std::vector<std::string> cells{arms.choice(arm).name,
                                   fmt::format("{}", depth),
                                   fmt::format("{:.1f}", median(shown)),
                                   fmt::format("{:.1f}", quantile(shown, 0.0)),
                                   fmt::format("{:.1f}", quantile(shown, 1.0)),
                                   fmt::format("{:.2f}", ratio),
                                   format_bytes(double(timing.usage.total()))};
    Json row{{"kv", arms.choice(arm).name},
             {"depth", depth},
             {unit, median(shown)},
             {"ratio_to_llama_f16", ratio},
             {unit + "_min", quantile(shown, 0.0)},
             {unit + "_max", quantile(shown, 1.0)},
             {"kv_bytes", timing.usage.total()},
             {"bits_per_element", bits}};
    if (workload.reads_prompt) {
      cells.push_back(fmt::format("{:.1f}", median(timing.reading_s)));
      row["reading_s"] = median(timing.reading_s);
    }
    if (!workload.prefill) {
      cells.push_back(fmt::format("{:.3f}", median(timing.compression_s)));
      row["compression_s"] = median(timing.compression_s);
    }
    table.add_row(cells);
    report.add_row(row);
  }
}

/// In prompt tokens.
double amount_of_work(const BenchModelOptions& options, const Arms& arms) {
  double work = 0.0;
  const int n_readings = options.workload.reads_prompt ? options.n_repetitions : 1;
  for (uint32_t depth : options.depths) {
    work += double(depth) * double(arms.n_prefills()) * n_readings;
    work += options.workload.token_cost * options.n_new * options.n_repetitions * double(arms.size());
  }
  return work;
}

LineChart empty_chart(const BenchModelOptions& options) {
  const Workload& workload = options.workload;
  const std::string about = fmt::format("{}, {} threads", options.model.name(), options.model.threads());
  if (workload.reads_prompt) {
    return {fmt::format("Seconds for an answer of {} tokens", options.n_new),
            fmt::format("{}, reading and compression included, median of {}", about, options.n_repetitions),
            "tokens of the prompt", "s"};
  }
  return {fmt::format("{} tokens/s with a context", workload.prefill ? "Prompt" : "Generated"),
          fmt::format("{}, {}, median of {}", about,
                      workload.prefill ? fmt::format("{} tokens at a time", options.n_new) : "token by token",
                      options.n_repetitions),
          "tokens in the cache before", "tokens/s"};
}

void run(const BenchModelOptions& options) {
  auto choices = parse_kv_option(options.kv);
  const size_t n_shown = choices.size();
  for (const char* needed : {kReference, kBaseline}) {  // the check and the ratio need them
    if (std::ranges::find(choices, needed, &llama::KvChoice::name) == choices.end())
      choices.push_back(unwrap(llama::KvChoice::parse(needed)));
  }
  for (const llama::KvChoice& choice : choices) {
    if (options.workload.reads_prompt && choice.takes_prompt) {
      throw UserError(fmt::format("{} does not read its prompt: {} times the reading; name it without prefill=exact",
                                  choice.name, options.command()));
    }
  }
  JsonReport report(options.output, options.command());
  if (!options.plot.empty()) check_writable(options.plot, "--plot");
  const auto model = options.model.load();
  const uint32_t deepest = *std::ranges::max_element(options.depths);
  Arms arms(*model, choices,
            {.n_ctx = (deepest + 2 + options.n_new + 1 + 255) / 256 * 256,
             .n_threads = options.model.threads(),
             .should_stop = interrupted});
  options.model.describe(*model, report.meta());
  report.meta().update({{"seed", options.seed}, {"tokens", options.n_new}, {"repetitions", options.n_repetitions}});
  Table table(columns_of(options.workload));
  Noise noise;
  LineChart chart = empty_chart(options);
  for (size_t arm = 0; arm < n_shown; ++arm) chart.lines.push_back({choices[arm].name, choices[arm].stock()});
  Progress progress(options.command(), amount_of_work(options, arms));
  arms.on_prefill = [&](size_t n_tokens) { progress.advance(double(n_tokens)); };
  try {
    DepthRun depth_run(options, *model, arms, progress);
    for (uint32_t depth : options.depths) {
      const auto timings = depth_run.run(depth);
      report_rows(options.workload, arms, n_shown, depth, timings, table, report, chart);
      for (const Timing& timing : timings) noise.add(timing.speed);
    }
  } catch (const Interrupted&) {
    report.meta()["interrupted"] = true;
  }
  progress.clear();
  table.print(stdout);
  report.meta()["worst_spread"] = noise.worst();
  noise.warn();
  report.write();
  if (!options.plot.empty()) write_file(options.plot, svg(chart));
  throw_if_interrupted();
}

}  // namespace

namespace {

void add_command(CLI::App& bench, const Workload& workload, uint32_t n_new, const char* what, const char* n_new_flags,
                 const char* n_new_text, const char* example) {
  auto options = std::make_shared<BenchModelOptions>(workload, n_new);
  if (workload.reads_prompt) options->depths = {4096};
  CLI::App* command = bench.add_subcommand(workload.name, what);
  options->model.add_to(*command);
  add_kv_option(*command, options->kv, "full,mikv,llama:f16,llama:q8_0,llama:q4_0");
  command->add_option("-d,--depth", options->depths, "tokens in the cache before, a list")
      ->type_name("N[,N...]")
      ->delimiter(',')
      ->check(in_range(0, 1 << 22))
      ->capture_default_str();
  command->add_option(n_new_flags, options->n_new, n_new_text)
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("-r,--repetitions", options->n_repetitions, "alternating repetitions")
      ->type_name("N")
      ->check(in_range(1, 1000))
      ->capture_default_str();
  command->add_option("-s,--seed", options->seed, "of the prompt's text")->type_name("N")->capture_default_str();
  command->add_option("-o,--output", options->output, "write meta data and rows as JSON")->type_name("FILE.json");
  command->add_option("--plot", options->plot, "draw the figures against depth")->type_name("FILE.svg");
  command->footer(
      fmt::format("Example:\n  mikv bench {} -m qwen2.5-coder-0.5b --depth 0,4096 {}", workload.name, example));
  command->callback([options] { run(*options); });
}

}  // namespace

void add_bench_decode_command(CLI::App& bench) {
  add_command(bench, kDecode, 16, "generation speed of the whole model after prompts of given lengths", "-n,--steps",
              "tokens to generate in a repetition",
              "--kv full,mikv,llama:f16,llama:q4_0 -o decode.json --plot decode.svg");
}

void add_bench_prefill_command(CLI::App& bench) {
  add_command(bench, kPrefill, 512, "speed at which the whole model takes in more text after prompts of given lengths",
              "-n,--new", "tokens to take in, in a repetition",
              "--new 512 --kv mikv,llama:f16,llama:q4_0 -o prefill.json --plot prefill.svg");
}

void add_bench_wait_command(CLI::App& bench) {
  add_command(bench, kWait, 128, "the whole wait for an answer: reading a prompt, compressing it, generating tokens",
              "-n,--tokens", "tokens of the answer", "--kv mikv,llama:f16,llama:q4_0 -o wait.json --plot wait.svg");
}

}  // namespace mikv::cli
