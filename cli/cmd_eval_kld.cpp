// mikv eval kld: how far each cache moves the model's next-token distribution from the full cache's.
//
// The text is tokenised once. Chunk i is `context` tokens as a prompt, compressed at its end, and the next `tokens`
// tokens fed one by one. After each of these the distribution is compared with the one that our uncompressed cache
// gives.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "arms.hpp"
#include "check.hpp"
#include "commands.hpp"
#include "model_options.hpp"
#include "progress.hpp"
#include "statistics.hpp"
#include "table.hpp"

namespace mikv::cli {
namespace {

struct Options {
  ModelOptions model;
  std::string kv;
  std::string text;
  uint32_t n_context = 1024;
  uint32_t n_tokens = 64;
  uint32_t n_chunks = 5;
  uint32_t n_ubatch = 256;
  std::string output;
};

/// Distributions of one chunk under the full cache, as logarithms: [n_tokens][n_vocab].
using Reference = std::vector<std::vector<double>>;

struct Tally {
  std::vector<double> divergences;
  size_t n_same_top = 0;
  double bits_per_element = 0.0;
  size_t n_chunks = 0;

  double same_top() const { return divergences.empty() ? 0.0 : double(n_same_top) / double(divergences.size()); }
  double mean_bits() const { return n_chunks ? bits_per_element / double(n_chunks) : 0.0; }
};

size_t top(std::span<const double> log_p) { return size_t(std::ranges::max_element(log_p) - log_p.begin()); }

/// Feeds the tokens and gives each distribution that follows one to `use`.
void feed(llama::Context& context, std::span<const llama::Token> tokens, Progress& progress,
          const std::function<void(size_t, std::vector<double>)>& use) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    throw_if_interrupted();
    check(context.decode(tokens[i]));
    use(i, log_softmax(context.logits()));
    progress.advance(kStepInPromptTokens);
  }
}

std::vector<llama::Token> read_tokens(const Options& options, const std::string& text, const llama::Model& model) {
  auto tokens = model.tokenize(text, true);
  const size_t needed = size_t(options.n_chunks) * (options.n_context + options.n_tokens);
  if (tokens.size() < needed) {
    throw UserError(
        fmt::format("--text {} has {} tokens, but {} chunks of {} need {}; use a longer text or fewer --chunks",
                    options.text, tokens.size(), options.n_chunks, options.n_context + options.n_tokens, needed));
  }
  return tokens;
}

/// One chunk under every arm. A chunk counts for an arm only when the arm has finished it.
class ChunkRun {
 public:
  ChunkRun(const Options& options, Arms& arms, std::vector<Tally>& tallies, Progress& progress)
      : options_(options), arms_(arms), tallies_(tallies), progress_(progress) {}

  void run(std::span<const llama::Token> chunk, size_t index) {
    const auto continuation = chunk.subspan(options_.n_context);
    arms_.set_prompt({chunk.begin(), chunk.begin() + options_.n_context});
    const std::string note = fmt::format("chunk {} of {}, ", index + 1, options_.n_chunks);
    progress_.advance(0, note + arms_.choice(0).name);
    Reference reference(continuation.size());
    feed(*arms_.start(0).context, continuation, progress_,
         [&](size_t i, std::vector<double> log_p) { reference[i] = std::move(log_p); });
    for (size_t arm = 1; arm < arms_.size(); ++arm) {
      progress_.advance(0, note + arms_.choice(arm).name);
      compare(arm, continuation, reference);
    }
  }

 private:
  void compare(size_t arm, std::span<const llama::Token> continuation, const Reference& reference) {
    const ArmStart start = arms_.start(arm);
    Tally next = tallies_[arm];
    feed(*start.context, continuation, progress_, [&](size_t i, const std::vector<double>& log_q) {
      next.divergences.push_back(kl_divergence(reference[i], log_q));
      next.n_same_top += top(reference[i]) == top(log_q);
    });
    next.bits_per_element += start.usage.bits_per_element();
    next.n_chunks += 1;
    tallies_[arm] = std::move(next);
  }

  const Options& options_;
  Arms& arms_;
  std::vector<Tally>& tallies_;
  Progress& progress_;
};

void report_rows(const Arms& arms, const std::vector<Tally>& tallies, JsonReport& report) {
  using enum Table::Align;
  Table table({{"kv", left}, {"bits/element"}, {"mean KLD"}, {"median"}, {"99 %"}, {"99.9 %"}, {"max"}, {"same top"}});
  for (size_t arm = 1; arm < arms.size(); ++arm) {  // 0 is the reference
    const Tally& t = tallies[arm];
    const auto& d = t.divergences;
    const double p50 = median(d), p99 = quantile(d, 0.99), p999 = quantile(d, 0.999), max = quantile(d, 1.0);
    const auto number = [](double value) { return fmt::format("{:.4f}", value); };
    table.add_row({arms.choice(arm).name, fmt::format("{:.2f}", t.mean_bits()), number(mean(d)), number(p50),
                   number(p99), number(p999), number(max), fmt::format("{:.1f} %", 100.0 * t.same_top())});
    report.add_row({{"kv", arms.choice(arm).name},
                    {"bits_per_element", t.mean_bits()},
                    {"mean", mean(d)},
                    {"median", p50},
                    {"p99", p99},
                    {"p999", p999},
                    {"max", max},
                    {"same_top", t.same_top()},
                    {"n", d.size()}});
  }
  table.print(stdout);
}

void run(const Options& options) {
  auto choices = parse_kv_option(options.kv);
  if (options.text.empty()) throw UserError("no text; give a plain text file with --text FILE");
  const std::string text = read_file(options.text, "text");
  JsonReport report(options.output, "eval kld");
  const auto model = options.model.load();
  const auto tokens = read_tokens(options, text, *model);
  // The reference runs as an arm of its own, ahead of the others.
  choices.insert(choices.begin(), unwrap(llama::KvChoice::parse("full")));
  const size_t chunk_size = options.n_context + options.n_tokens;
  Arms arms(*model, choices,
            {.n_ctx = uint32_t((chunk_size + 255) / 256 * 256),
             .n_ubatch = options.n_ubatch,
             .n_threads = options.model.threads(),
             .should_stop = interrupted});
  options.model.describe(*model, report.meta());
  report.meta().update({{"seed", nullptr},
                        {"text", options.text},
                        {"context", options.n_context},
                        {"tokens", options.n_tokens},
                        {"chunks", options.n_chunks},
                        {"n_ubatch", options.n_ubatch}});

  std::vector<Tally> tallies(arms.size());
  const double work_per_chunk = double(options.n_context) * double(arms.n_prefills()) +
                                kStepInPromptTokens * double(options.n_tokens) * double(arms.size());
  Progress progress("eval kld", options.n_chunks * work_per_chunk);
  arms.on_prefill = [&](size_t n_tokens) { progress.advance(double(n_tokens)); };
  ChunkRun chunk_run(options, arms, tallies, progress);
  try {
    for (size_t i = 0; i < options.n_chunks; ++i)
      chunk_run.run(std::span(tokens).subspan(i * chunk_size, chunk_size), i);
  } catch (const Interrupted&) {
    report.meta()["interrupted"] = true;
  }
  progress.clear();
  report_rows(arms, tallies, report);
  report.write();
  throw_if_interrupted();
}

}  // namespace

void add_eval_kld_command(CLI::App& eval) {
  auto options = std::make_shared<Options>();
  CLI::App* command = eval.add_subcommand("kld", "KL divergence of the next token's distribution to the full cache's");
  options->model.add_to(*command);
  add_kv_option(*command, options->kv, "mikv,mikv-paper,h2o,rtn4,llama:q8_0,llama:q4_0");
  command->add_option("--text,-f", options->text, "plain text to measure on")->type_name("FILE");
  command->add_option("--context", options->n_context, "tokens of a chunk that are the prompt")
      ->type_name("N")
      ->check(in_range(2, 1 << 24))
      ->capture_default_str();
  command->add_option("--tokens", options->n_tokens, "tokens of a chunk that are fed one by one after it")
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  command->add_option("--chunks", options->n_chunks, "chunks of the text, from its beginning")
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  add_ubatch_option(*command, options->n_ubatch);
  command->add_option("-o,--output", options->output, "write meta data and rows as JSON")->type_name("FILE.json");
  command->footer(
      "Example:\n  mikv eval kld -m qwen2.5-coder-1.5b --text book.txt --context 1024 --tokens 64 --chunks 5 \\\n"
      "    --kv mikv,mikv-paper,llama:q8_0,llama:q4_0 -o kld.json");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
