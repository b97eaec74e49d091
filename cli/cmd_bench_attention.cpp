// mikv bench attention: attention alone, ours and llama.cpp's on the same keys and values, alternating.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <span>
#include <thread>

#include "attention_problem.hpp"
#include "check.hpp"
#include "commands.hpp"
#include "mikv/reference.hpp"
#include "mikv/simd.hpp"
#include "model_options.hpp"
#include "noise.hpp"
#include "progress.hpp"
#include "roofline.hpp"
#include "statistics.hpp"
#include "stopwatch.hpp"
#include "table.hpp"

namespace mikv::cli {
namespace {

struct BenchAttentionOptions {
  std::string kv = "full,mikv,llama:f16,llama:q8_0,llama:q4_0";
  std::vector<uint32_t> n_tokens = {1024, 4096, 16384};
  std::vector<uint32_t> head_dims = {128};
  std::vector<uint32_t> groups = {6};
  std::vector<int> n_threads = {};
  uint32_t n_queries = 1;
  uint32_t n_kv_heads = 2;
  uint32_t n_layers = 28;
  ContentOptions content;
  bool whole_steps = false;  ///< ours also store the step's token, with scores and demotion
  int n_repetitions = 9;
  std::string output;
};

/// Largest error of `got`, as a share of the root mean square of `wanted`; NaN is infinite.
double relative_error(std::span<const float> got, std::span<const float> wanted) {
  double square = 0.0, worst = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    square += double(wanted[i]) * wanted[i];
    const double error = std::abs(double(got[i]) - wanted[i]);
    worst = error <= worst ? worst : std::isnan(error) ? INFINITY : error;
  }
  return worst / std::sqrt(square / double(wanted.size()));
}

/// Root mean square of the errors of `got`, as a share of that of `wanted`; not below any number if one is NaN.
double mean_error(std::span<const float> got, std::span<const float> wanted) {
  double square = 0.0, errors = 0.0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    square += double(wanted[i]) * wanted[i];
    errors += std::pow(double(got[i]) - wanted[i], 2);
  }
  return std::sqrt(errors / square);
}

/// One cache under measurement.
class Arm {
 public:
  explicit Arm(llama::KvChoice choice) : kv(std::move(choice)) {}
  virtual ~Arm() = default;
  virtual double run() = 0;          ///< seconds for all layers
  virtual void check_answer() = 0;   ///< throws UserError if the kernel is wrong
  virtual double bytes() const = 0;  ///< that one layer's attention reads
  llama::KvChoice kv;
  std::vector<double> seconds = {};
};

class OurArm : public Arm {
 public:
  OurArm(llama::KvChoice choice, const llama::FlashAttnProblem& problem, const Content& content, bool whole_steps,
         ThreadTeam& team)
      : Arm(std::move(choice)),
        n_layers_(problem.n_layers),
        whole_steps_(whole_steps),
        team_(team),
        out_(output_size(problem)),
        args_(make_args(problem, content, out_.data())),
        context_(problem, content, *kv.spec, team.size()) {
    if (whole_steps_) args_.mask = {};  // the mask ends before the tokens of the steps
  }

  double run() override {
    double elapsed = 0.0;
    if (whole_steps_) context_.begin(1, true);
    team_.run([&](uint32_t thread) {
      team_.barrier();
      const Stopwatch watch;
      for (uint32_t layer = 0; layer < n_layers_; ++layer) {
        if (whole_steps_) {
          if (thread == 0) context_.store(layer);
          team_.barrier();
        }
        (void)context_.get().attend(int(layer), {&args_, 1}, thread, team_.size());
        team_.barrier();
      }
      if (thread == 0) elapsed = watch.seconds();
    });
    if (whole_steps_) context_.end();
    return elapsed;
  }

  void check_answer() override {
    // The last layer's answer and the reference's, of what is stored now: a second attention adds scores only.
    std::vector<float> wanted(out_.size());
    AttendArgs args = args_;
    args.out = wanted.data();
    const int last = int(n_layers_) - 1;
    check(reference_attend(context_.get(), last, {&args, 1}));
    check(context_.get().attend(last, {&args_, 1}));
    if (whole_steps_) context_.end();
    // fp32 sums against doubles over decoded f16 values: errors of some 1e-4 are rounding, of 1e-2 a wrong kernel.
    const double error = relative_error(out_, wanted);
    if (!(error < 1e-2))
      throw UserError(fmt::format(
          "refusing to time {}: its attention is off by {:.1e} of the reference; please report it", kv.name, error));
  }

  double bytes() const override {
    const MemoryUsage usage = context_.get().memory_usage();
    return double(usage.staged + usage.hi + usage.lo + usage.scales) / n_layers_;
  }

 private:
  uint32_t n_layers_;
  bool whole_steps_;
  ThreadTeam& team_;
  std::vector<float> out_;
  AttendArgs args_;
  mutable FilledContext context_;
};

/// softmax(q.k) v over the content itself, in doubles: the reference for caches that are not ours.
std::vector<float> exact_attention(const llama::FlashAttnProblem& problem, const Content& content) {
  llama::FlashAttnProblem one_layer = problem;
  one_layer.n_layers = 1;
  FilledContext context(one_layer, content, *unwrap(llama::KvChoice::parse("full")).spec, 1);
  std::vector<float> out(output_size(problem));
  const AttendArgs args = make_args(problem, content, out.data());
  check(reference_attend(context.get(), 0, {&args, 1}));
  return out;
}

class StockArm : public Arm {
 public:
  StockArm(llama::KvChoice choice, const llama::FlashAttnProblem& problem, const Content& content)
      : Arm(std::move(choice)),
        problem_(problem),
        content_(content),
        bench_(unwrap(llama::FlashAttnBench::create(problem, kv.stock_type, content.k, content.v, content.mask))) {
    bench_->set_query(content.q);
  }

  double run() override { return bench_->run(); }

  void check_answer() override {
    bench_->run();
    const double error = mean_error(bench_->output(), exact_attention(problem_, content_));
    // Types differ by their own rounding, which each bit less doubles, and f16 by its sums over many tokens. Measured,
    // in shares of this bound: 0.05 to 0.6. Keys or values in wrong places are off by 1.4.
    const LayerShape& shape = problem_.shape;
    const double n_elements = double(problem_.n_tokens) * shape.n_kv_heads * (shape.head_dim_k + shape.head_dim_v);
    const double bits_per_element = 8.0 * bytes() / n_elements;
    if (!(error < 0.05 + std::exp2(2.5 - bits_per_element)))
      throw UserError(fmt::format(
          "refusing to time {}: its attention is off by {:.1e} of the exact one; please report it", kv.name, error));
  }

  double bytes() const override { return double(bench_->cache_bytes()); }

 private:
  const llama::FlashAttnProblem& problem_;
  const Content& content_;
  std::unique_ptr<llama::FlashAttnBench> bench_;
};

std::vector<std::unique_ptr<Arm>> make_arms(const std::vector<llama::KvChoice>& choices,
                                            const llama::FlashAttnProblem& problem, const Content& content,
                                            bool whole_steps, ThreadTeam& team) {
  std::vector<std::unique_ptr<Arm>> arms;
  for (const auto& choice : choices) {
    if (choice.stock())
      arms.push_back(std::make_unique<StockArm>(choice, problem, content));
    else
      arms.push_back(std::make_unique<OurArm>(choice, problem, content, whole_steps, team));
    arms.back()->check_answer();
  }
  return arms;
}

// What a run of an arm finds otherwise: llama.cpp's threads still spinning, our own still asleep or both on one core.
constexpr auto kPause = std::chrono::milliseconds(20);
constexpr double kWarmUpSeconds = 0.03;

/// All arms once, repeated: slow moments of the machine hit all alike.
void measure(std::vector<std::unique_ptr<Arm>>& arms, int n_repetitions, Progress& progress, const std::string& note) {
  for (int repetition = 0; repetition < n_repetitions; ++repetition) {
    for (auto& arm : arms) {
      throw_if_interrupted();
      std::this_thread::sleep_for(kPause);
      for (const Stopwatch warm_up; warm_up.seconds() < kWarmUpSeconds;) arm->run();
      arm->seconds.push_back(arm->run());
    }
    progress.advance(1, note);
  }
}

/// Median over repetitions of the baseline's seconds by the arm's, taken in the same repetition.
double paired_ratio(const Arm& arm, const Arm& baseline) {
  std::vector<double> ratios;
  for (size_t i = 0; i < arm.seconds.size(); ++i) ratios.push_back(baseline.seconds[i] / arm.seconds[i]);
  return median(ratios);
}

void report_rows(const std::vector<std::unique_ptr<Arm>>& arms, const llama::FlashAttnProblem& problem,
                 const BenchAttentionOptions& options, const Roofline& roofline, Table& table, JsonReport& report) {
  const LayerShape& shape = problem.shape;
  double n_seen = 0.0;
  for (uint32_t query = 0; query < problem.n_queries; ++query)
    n_seen += n_visible(problem, options.content.window, query);
  const double n_units = n_seen * shape.n_kv_heads * problem.n_layers;
  const double macs = n_seen * shape.n_heads * (shape.head_dim_k + shape.head_dim_v);
  const auto baseline = std::ranges::find(arms, std::string(kBaseline), [](const auto& arm) { return arm->kv.name; });
  for (const auto& arm : arms) {
    const double middle = median(arm->seconds), least = quantile(arm->seconds, 0.0),
                 per_layer = middle / problem.n_layers;
    const double ratio = paired_ratio(*arm, **baseline);
    const double share = roofline.seconds(macs, arm->bytes()) / per_layer;
    const double gbytes = 1e-9 * arm->bytes() / per_layer, gmacs = 1e-9 * macs / per_layer;
    table.add_row({arm->kv.name, fmt::format("{}", shape.head_dim_k),
                   fmt::format("{}", shape.n_heads / shape.n_kv_heads), fmt::format("{}", problem.n_threads),
                   fmt::format("{}", problem.n_tokens), fmt::format("{:.2f}", 1e9 * middle / n_units),
                   fmt::format("{:.2f}", 1e9 * least / n_units), fmt::format("{:.2f}", ratio),
                   fmt::format("{:.1f}", gbytes), fmt::format("{:.1f}", gmacs),
                   fmt::format("{:.0f} %", 100.0 * share)});
    report.add_row({{"kv", arm->kv.name},
                    {"n_tokens", problem.n_tokens},
                    {"head_dim", shape.head_dim_k},
                    {"group", shape.n_heads / shape.n_kv_heads},
                    {"threads", problem.n_threads},
                    {"queries", problem.n_queries},
                    {"microseconds_per_layer", 1e6 * per_layer},
                    {"ns_per_token_head", 1e9 * middle / n_units},
                    {"ns_per_token_head_min", 1e9 * least / n_units},
                    {"ratio_to_llama_f16", ratio},
                    {"gbyte_per_s", gbytes},
                    {"gmac_per_s", gmacs},
                    {"roofline_share", share}});
  }
}

void check_options(const BenchAttentionOptions& options) {
  check_queries(options.n_queries, options.n_tokens);
  if (options.whole_steps && (options.n_queries > 1 || options.content.window)) {
    throw UserError("--whole-steps is about generation over all tokens; leave --queries and --window out");
  }
  if (options.content.n_sinks > *std::ranges::min_element(options.groups)) {
    throw UserError(fmt::format("--sinks {} is more than the {} query heads of a group", options.content.n_sinks,
                                *std::ranges::min_element(options.groups)));
  }
}

Table empty_table() {
  using enum Table::Align;
  return Table({{"kv", left},
                {"dim"},
                {"group"},
                {"threads"},
                {"tokens"},
                {"ns/token/head"},
                {"min"},
                {"x llama:f16"},
                {"GB/s"},
                {"GMAC/s"},
                {"of roofline"}});
}

void run(const BenchAttentionOptions& options) {
  auto choices = parse_kv_option(options.kv);
  if (std::ranges::find(choices, kBaseline, &llama::KvChoice::name) == choices.end())
    choices.push_back(unwrap(llama::KvChoice::parse(kBaseline)));
  check_options(options);
  JsonReport report(options.output, "bench attention");
  std::vector<int> thread_counts = options.n_threads;
  if (thread_counts.empty()) thread_counts = {llama::default_threads()};
  report.meta().update({{"model", nullptr},
                        {"seed", options.content.seed},
                        {"llama_cpp", llama::llama_version()},
                        {"threads", thread_counts},
                        {"kv_heads", options.n_kv_heads},
                        {"layers", options.n_layers},
                        {"whole_steps", options.whole_steps},
                        {"window", options.content.window},
                        {"sinks", options.content.n_sinks},
                        {"repetitions", options.n_repetitions}});
  Table table = empty_table();
  Noise noise;
  Progress progress("bench attention", double(thread_counts.size() * options.head_dims.size() * options.groups.size() *
                                              options.n_tokens.size()) *
                                           options.n_repetitions);
  const auto bench_one = [&](const llama::FlashAttnProblem& problem, ThreadTeam& team, const Roofline& roofline) {
    const Content content = make_content(problem, options.content);
    auto arms = make_arms(choices, problem, content, options.whole_steps, team);
    measure(arms, options.n_repetitions, progress,
            fmt::format("{} tokens of {} channels, {} heads per group, {} threads", problem.n_tokens,
                        problem.shape.head_dim_k, problem.shape.n_heads / problem.shape.n_kv_heads, problem.n_threads));
    report_rows(arms, problem, options, roofline, table, report);
    for (const auto& arm : arms) noise.add(arm->seconds);
  };
  try {
    for (const int n_threads : thread_counts) {
      ThreadTeam team{uint32_t(n_threads)};
      const Roofline roofline = measure_roofline(team);
      report.meta()["rooflines"].push_back(
          {{"threads", n_threads}, {"gmac_per_s", roofline.gmac_per_s}, {"gbyte_per_s", roofline.gbyte_per_s}});
      progress.clear();
      fmt::print("{} threads: {:.0f} GMAC/s in fp32, {:.0f} GB/s from memory\n", n_threads, roofline.gmac_per_s,
                 roofline.gbyte_per_s);
      for (const uint32_t dim : options.head_dims)
        for (const uint32_t group : options.groups)
          for (const uint32_t n_tokens : options.n_tokens)
            bench_one({{group * options.n_kv_heads, options.n_kv_heads, dim, dim},
                       n_tokens,
                       options.n_queries,
                       options.n_layers,
                       uint32_t(n_threads)},
                      team, roofline);
    }
  } catch (const Interrupted&) {
    report.meta()["interrupted"] = true;
  }
  progress.clear();
  fmt::print("{} KV heads, {} layers, {} query tokens, {}\n\n", options.n_kv_heads, options.n_layers, options.n_queries,
             simd_target());
  table.print(stdout);
  report.meta()["worst_spread"] = noise.worst();
  noise.warn();
  report.write();
  throw_if_interrupted();
}

}  // namespace

void add_bench_attention_command(CLI::App& bench) {
  auto options = std::make_shared<BenchAttentionOptions>();
  CLI::App* command = bench.add_subcommand("attention", "attention kernels alone, over a filled cache");
  add_kv_option(*command, options->kv, options->kv);
  command->add_option("--tokens", options->n_tokens, "cached tokens, a list")
      ->type_name("N[,N...]")
      ->delimiter(',')
      ->check(in_range(2, 1 << 22))
      ->capture_default_str();
  command->add_option("--head-dim", options->head_dims, "channels of a head, a list")
      ->type_name("N[,N...]")
      ->delimiter(',')
      ->check(in_range(8, 512))
      ->capture_default_str();
  command->add_option("--group", options->groups, "query heads on one KV head, a list")
      ->type_name("N[,N...]")
      ->delimiter(',')
      ->check(in_range(1, 16))
      ->capture_default_str();
  command->add_option("--queries", options->n_queries, "query tokens: 1 as in generation, more as in a prompt's chunk")
      ->type_name("N")
      ->check(in_range(1, 4096))
      ->capture_default_str();
  command
      ->add_option("--window", options->content.window,
                   "tokens that a query sees at most, as in a sliding-window layer (0: all)")
      ->type_name("N")
      ->check(in_range(0, 1 << 22))
      ->capture_default_str();
  command
      ->add_option(
          "--sinks", options->content.n_sinks,
          "query heads of a group whose attention goes to the first token, as that of many heads of a model does")
      ->type_name("N")
      ->check(in_range(0, 16))
      ->capture_default_str();
  command->add_flag("--whole-steps", options->whole_steps,
                    "ours do a whole generation step: store its token, attend, update scores, demote");
  command->add_option("--kv-heads", options->n_kv_heads, "KV heads")
      ->type_name("N")
      ->check(in_range(1, 256))
      ->capture_default_str();
  command->add_option("--layers", options->n_layers, "caches attended one after the other, as a model's layers are")
      ->type_name("N")
      ->check(in_range(1, 256))
      ->capture_default_str();
  command->add_option("-t,--threads", options->n_threads, "threads, a list (default: the physical cores)")
      ->type_name("N[,N...]")
      ->delimiter(',')
      ->check(in_range(1, 512));
  command->add_option("-r,--repetitions", options->n_repetitions, "alternating repetitions")
      ->type_name("N")
      ->check(in_range(5, 10000))
      ->capture_default_str();
  command->add_option("-s,--seed", options->content.seed, "of the random content")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("-o,--output", options->output, "write meta data and rows as JSON")->type_name("FILE.json");
  command->footer(
      "Example:\n  mikv bench attention --tokens 1024,4096,16384 --head-dim 128 --group 6 --kv "
      "mikv,llama:f16,llama:q4_0");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
