// mikv bench threads: what more cores would give to attention. The share of each thread is timed alone, one after the
// other, so that one core is enough; a step takes as long as its longest share.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <memory>

#include "attention_problem.hpp"
#include "check.hpp"
#include "commands.hpp"
#include "json_report.hpp"
#include "mikv/simd.hpp"
#include "model_options.hpp"
#include "progress.hpp"
#include "stopwatch.hpp"
#include "table.hpp"

namespace mikv::cli {
namespace {

struct BenchThreadsOptions {
  std::string kv = "mikv";
  std::vector<uint32_t> n_kv_heads = {2, 8};
  std::vector<uint32_t> n_tokens = {4096, 16384};
  std::vector<uint32_t> n_threads = {1, 2, 4, 8, 16};
  uint32_t head_dim = 128;
  uint32_t group = 6;
  uint32_t n_layers = 8;
  uint32_t n_queries = 1;
  int n_repetitions = 9;
  uint64_t seed = 1;
  std::string output;
};

/// The least time of each share of each layer: other work on the machine only adds to it.
class Shares {
 public:
  Shares(uint32_t n_layers, uint32_t n_threads)
      : n_threads_(n_threads), least_(size_t{n_layers} * n_threads, INFINITY) {}

  uint32_t n_threads() const { return n_threads_; }

  void time(Context& context, const AttendArgs& args) {
    for (size_t i = 0; i < least_.size(); ++i) {
      const Stopwatch watch;
      check(context.attend(int(i / n_threads_), {&args, 1}, uint32_t(i % n_threads_), n_threads_));
      least_[i] = std::min(least_[i], watch.seconds());
    }
  }

  /// Seconds of all layers, each as long as its longest share.
  double longest() const {
    double seconds = 0.0;
    for (auto layer = least_.begin(); layer != least_.end(); layer += n_threads_)
      seconds += *std::max_element(layer, layer + n_threads_);
    return seconds;
  }

 private:
  uint32_t n_threads_;
  std::vector<double> least_;  ///< [n_layers][n_threads]
};

/// Adds a row for each number of threads, in proportion to the first.
void measure(const llama::KvChoice& choice, const llama::FlashAttnProblem& problem, const BenchThreadsOptions& options,
             Progress& progress, Table& table, JsonReport& report) {
  const Content content = make_content(problem, {.seed = options.seed});
  FilledContext context(problem, content, *choice.spec, *std::ranges::max_element(options.n_threads));
  std::vector<float> out(output_size(problem));
  const AttendArgs args = make_args(problem, content, out.data());
  std::vector<Shares> counts;
  for (const uint32_t n_threads : options.n_threads) counts.emplace_back(problem.n_layers, n_threads);
  for (int repetition = 0; repetition < options.n_repetitions; ++repetition) {
    throw_if_interrupted();
    for (Shares& shares : counts) shares.time(context.get(), args);
    progress.advance(
        1, fmt::format("{}, {} KV heads, {} tokens", choice.name, problem.shape.n_kv_heads, problem.n_tokens));
  }
  for (const Shares& shares : counts) {
    const double per_layer = 1e6 * shares.longest() / problem.n_layers, ratio = counts[0].longest() / shares.longest();
    table.add_row({choice.name, fmt::format("{}", problem.shape.n_kv_heads), fmt::format("{}", problem.n_tokens),
                   fmt::format("{}", shares.n_threads()), fmt::format("{:.1f}", per_layer),
                   fmt::format("{:.2f}", ratio)});
    report.add_row({{"kv", choice.name},
                    {"kv_heads", problem.shape.n_kv_heads},
                    {"n_tokens", problem.n_tokens},
                    {"queries", problem.n_queries},
                    {"threads", shares.n_threads()},
                    {"microseconds_per_layer", per_layer},
                    {"ratio_to_first", ratio}});
  }
}

void run(const BenchThreadsOptions& options) {
  const auto choices = parse_kv_option(options.kv);
  for (const llama::KvChoice& choice : choices) {
    if (choice.stock()) throw UserError(fmt::format("bench threads times mikv's caches; leave {} out", choice.name));
  }
  check_queries(options.n_queries, options.n_tokens);
  JsonReport report(options.output, "bench threads");
  report.meta().update({{"model", nullptr},
                        {"threads", options.n_threads},
                        {"seed", options.seed},
                        {"head_dim", options.head_dim},
                        {"group", options.group},
                        {"layers", options.n_layers},
                        {"repetitions", options.n_repetitions}});
  using enum Table::Align;
  Table table({{"kv", left},
               {"KV heads"},
               {"tokens"},
               {"threads"},
               {"us/layer"},
               {fmt::format("x {} threads", options.n_threads.front())}});
  Progress progress("bench threads", double(choices.size() * options.n_kv_heads.size() * options.n_tokens.size()) *
                                         options.n_repetitions);
  try {
    for (const llama::KvChoice& choice : choices)
      for (const uint32_t n_kv_heads : options.n_kv_heads)
        for (const uint32_t n_tokens : options.n_tokens)
          measure(choice,
                  {{options.group * n_kv_heads, n_kv_heads, options.head_dim, options.head_dim},
                   n_tokens,
                   options.n_queries,
                   options.n_layers,
                   1},
                  options, progress, table, report);
  } catch (const Interrupted&) {
    report.meta()["interrupted"] = true;
  }
  progress.clear();
  fmt::print("the longest share of a step, by the least time of each, timed alone; {}\n\n", simd_target());
  table.print(stdout);
  report.write();
  throw_if_interrupted();
}

void add_list(CLI::App& command, const char* flags, std::vector<uint32_t>& values, uint32_t most, const char* what) {
  command.add_option(flags, values, what)
      ->type_name("N[,N...]")
      ->delimiter(',')
      ->check(in_range(1, most))
      ->capture_default_str();
}

void add_number(CLI::App& command, const char* flags, uint32_t& value, uint32_t least, uint32_t most,
                const char* what) {
  command.add_option(flags, value, what)->type_name("N")->check(in_range(least, most))->capture_default_str();
}

}  // namespace

void add_bench_threads_command(CLI::App& bench) {
  auto options = std::make_shared<BenchThreadsOptions>();
  CLI::App* command = bench.add_subcommand(
      "threads", "how attention divides among threads: the longest of their shares, each timed alone");
  add_kv_option(*command, options->kv, options->kv);
  add_list(*command, "--tokens", options->n_tokens, 1 << 22, "cached tokens, a list");
  add_list(*command, "--kv-heads", options->n_kv_heads, 256, "KV heads, a list");
  add_list(*command, "-t,--threads", options->n_threads, 512, "threads, a list; ratios are to the first");
  add_number(*command, "--head-dim", options->head_dim, 8, 512, "channels of a head");
  add_number(*command, "--group", options->group, 1, 16, "query heads on one KV head");
  add_number(*command, "--queries", options->n_queries, 1, 4096,
             "query tokens: 1 as in generation, more as in a prompt's chunk");
  add_number(*command, "--layers", options->n_layers, 1, 256, "caches attended one after the other");
  command->add_option("-r,--repetitions", options->n_repetitions, "alternating repetitions")
      ->type_name("N")
      ->check(in_range(1, 10000))
      ->capture_default_str();
  command->add_option("-s,--seed", options->seed, "of the random content")->type_name("N")->capture_default_str();
  command->add_option("-o,--output", options->output, "write meta data and rows as JSON")->type_name("FILE.json");
  command->footer("Example:\n  mikv bench threads --kv-heads 2,8 --threads 1,2,4,8,16 --kv mikv");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
