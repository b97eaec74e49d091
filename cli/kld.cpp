#include "kld.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <span>

#include "arms.hpp"
#include "check.hpp"
#include "progress.hpp"
#include "statistics.hpp"
#include "utf8.hpp"

namespace mikv::cli {
namespace {

/// Distributions of one chunk under the full cache, as logarithms: [n_tokens][n_vocab].
using Reference = std::vector<std::vector<double>>;

size_t top(std::span<const double> log_p) { return size_t(std::ranges::max_element(log_p) - log_p.begin()); }

/// Feeds the tokens and gives each distribution that follows one to `use`.
void feed(llama::EngineContext& context, std::span<const llama::Token> tokens, Progress& progress,
          const std::function<void(size_t, std::vector<double>)>& use) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    throw_if_interrupted();
    check(context.decode(tokens[i]));
    use(i, log_softmax(context.logits()));
    progress.advance(kStepInPromptTokens);
  }
}

/// One chunk under every arm. A chunk counts for an arm only when the arm has finished it.
class ChunkRun {
 public:
  ChunkRun(const KldOptions& options, Arms& arms, std::vector<KldTally>& tallies, Progress& progress)
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
    KldTally next = tallies_[arm];
    feed(*start.context, continuation, progress_, [&](size_t i, const std::vector<double>& log_q) {
      next.divergences.push_back(kl_divergence(reference[i], log_q));
      next.n_same_top += top(reference[i]) == top(log_q);
    });
    next.bits_per_element += start.usage.bits_per_element();
    next.n_chunks += 1;
    tallies_[arm] = std::move(next);
  }

  const KldOptions& options_;
  Arms& arms_;
  std::vector<KldTally>& tallies_;
  Progress& progress_;
};

}  // namespace

void KldOptions::add_to(CLI::App& command) {
  command.add_option("--text,-f", text, "plain text to measure on")->type_name("FILE");
  command
      .add_option("--context", n_context, "tokens of a chunk that are the prompt; fewer than 256 are not compressed")
      ->type_name("N")
      ->check(in_range(2, 1 << 24))
      ->capture_default_str();
  command.add_option("--tokens", n_tokens, "tokens of a chunk that are fed one by one after it")
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  command.add_option("--chunks", n_chunks, "chunks of the text, from its beginning")
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  add_ubatch_option(command, n_ubatch);
}

void KldOptions::describe(Json& meta) const {
  meta.update({{"seed", nullptr},
               {"text", text},
               {"context", n_context},
               {"tokens", n_tokens},
               {"chunks", n_chunks},
               {"n_ubatch", n_ubatch}});
}

std::string KldOptions::contents() const {
  if (text.empty()) throw UserError("no text; give a plain text file with --text FILE");
  return readable_text(read_file(text, "text"), "--text " + text);
}

std::vector<llama::Token> KldOptions::tokenise(const std::string& contents, const llama::Model& model) const {
  auto tokens = model.tokenize(contents, true);
  const size_t needed = size_t(n_chunks) * (n_context + n_tokens);
  if (tokens.size() < needed) {
    throw UserError(
        fmt::format("--text {} has {} tokens, but {} chunks of {} need {}; use a longer text or fewer --chunks", text,
                    tokens.size(), n_chunks, n_context + n_tokens, needed));
  }
  return tokens;
}

Json KldTally::to_json() const {
  const auto& d = divergences;
  return {{"bits_per_element", mean_bits()},
          {"mean", mean(d)},
          {"median", median(d)},
          {"p99", quantile(d, 0.99)},
          {"p999", quantile(d, 0.999)},
          {"max", quantile(d, 1.0)},
          {"same_top", same_top()},
          {"n", d.size()}};
}

KldResult measure_kld(const llama::Model& model, std::vector<llama::KvChoice> choices,
                      const std::vector<llama::Token>& tokens, const KldOptions& options, int n_threads,
                      const std::string& title) {
  // The reference runs as an arm of its own, ahead of the others.
  choices.insert(choices.begin(), unwrap(llama::KvChoice::parse("full")));
  const size_t chunk_size = options.n_context + options.n_tokens;
  Arms arms(model, choices,
            {.n_ctx = uint32_t((chunk_size + 255) / 256 * 256),
             .n_ubatch = options.n_ubatch,
             .n_threads = n_threads,
             .should_stop = interrupted});
  KldResult result;
  result.tallies.resize(arms.size());
  const double work_per_chunk = double(options.n_context) * double(arms.n_prefills()) +
                                kStepInPromptTokens * double(options.n_tokens) * double(arms.size());
  Progress progress(title, options.n_chunks * work_per_chunk);
  arms.on_prefill = [&](size_t n) { progress.advance(double(n)); };
  ChunkRun chunk_run(options, arms, result.tallies, progress);
  try {
    for (size_t i = 0; i < options.n_chunks; ++i)
      chunk_run.run(std::span(tokens).subspan(i * chunk_size, chunk_size), i);
  } catch (const Interrupted&) {
    result.interrupted = true;
  }
  progress.clear();
  result.tallies.erase(result.tallies.begin());
  return result;
}

}  // namespace mikv::cli
