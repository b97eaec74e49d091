#include "kld.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <span>

#include "arms.hpp"
#include "check.hpp"
#include "progress.hpp"
#include "random.hpp"
#include "statistics.hpp"
#include "utf8.hpp"

namespace mikv::cli {
namespace {

/// What is fed after a prompt, and the full cache's logits after each token: [n_tokens][n_vocab]. Distributions, which
/// are doubles, would take twice as much: gigabytes for thousands of tokens.
struct Reference {
  std::vector<llama::Token> tokens;
  std::vector<std::vector<float>> logits;
};

size_t top(std::span<const double> log_p) { return size_t(std::ranges::max_element(log_p) - log_p.begin()); }

/// Writes a text with a model: one of the likeliest tokens, but none that ends it. llama::Sampler would end it, and
/// reads a context's own logits, which the start of an arm has apart.
class Writer {
 public:
  Writer(const llama::Model& model, uint64_t seed) : model_(model), random_(seed), order_(model.n_vocab()) {
    std::iota(order_.begin(), order_.end(), llama::Token{0});
  }

  llama::Token next(std::span<const float> logits) {
    const auto likelier = [&](llama::Token a, llama::Token b) { return logits[size_t(a)] > logits[size_t(b)]; };
    const size_t n = std::min(kLikeliest + kEnds, order_.size());
    std::partial_sort(order_.begin(), order_.begin() + ptrdiff_t(n), order_.end(), likelier);
    std::vector<llama::Token> tokens;
    for (size_t i = 0; i < n && tokens.size() < kLikeliest; ++i) {
      if (!model_.is_end_of_generation(order_[i])) tokens.push_back(order_[i]);
    }
    std::vector<double> sums;
    for (const llama::Token token : tokens) {
      const double weight = std::exp(double(logits[size_t(token)] - logits[size_t(tokens.front())]) / kTemperature);
      sums.push_back(weight + (sums.empty() ? 0.0 : sums.back()));
    }
    const double drawn = random_.uniform() * sums.back();
    return tokens[size_t(std::ranges::upper_bound(sums, drawn) - sums.begin())];
  }

 private:
  static constexpr size_t kLikeliest = 40, kEnds = 16;
  static constexpr double kTemperature = 0.8;
  const llama::Model& model_;
  Random random_;
  std::vector<llama::Token> order_;
};

/// One chunk under every arm whose row is not there yet.
class ChunkRun {
 public:
  ChunkRun(const llama::Model& model, const KldOptions& options, Arms& arms, RowLog& rows, Progress& progress)
      : model_(model), options_(options), arms_(arms), rows_(rows), progress_(progress) {}

  size_t n_missing(size_t index) const {
    size_t n = 0;
    for (size_t arm = 1; arm < arms_.size(); ++arm) n += !rows_.has(index, arms_.choice(arm).name);
    return n;
  }

  /// In prompt tokens.
  double work(size_t index) const {
    const size_t n = n_missing(index);
    if (n == 0) return 0.0;
    return double(options_.n_context) * double(std::min(arms_.n_prefills(), n + 1)) +
           kStepInPromptTokens * double(options_.n_tokens) * double(n + 1);
  }

  void run(std::span<const llama::Token> chunk, size_t index) {
    if (n_missing(index) == 0) return;
    arms_.set_prompt({chunk.begin(), chunk.begin() + options_.n_context});
    const std::string note = fmt::format("chunk {} of {}, ", index + 1, options_.n_chunks);
    progress_.advance(0, note + arms_.choice(0).name);
    const Reference reference = refer(chunk.subspan(options_.n_context), index);
    for (size_t arm = 1; arm < arms_.size(); ++arm) {
      const std::string& kv = arms_.choice(arm).name;
      if (rows_.has(index, kv)) continue;
      progress_.advance(0, note + kv);
      rows_.add(index, kv, compare(arm, reference));
    }
  }

 private:
  /// Feeds a token, and gives the logits that follow it.
  std::span<const float> feed(llama::EngineContext& context, llama::Token token) {
    throw_if_interrupted();
    check(context.decode(token));
    progress_.advance(kStepInPromptTokens);
    return context.logits();
  }

  Reference refer(std::span<const llama::Token> text, size_t index) {
    const ArmStart start = arms_.start(0);
    Writer writer(model_, options_.seed + index);
    Reference reference;
    std::span<const float> logits = start.logits;
    for (uint32_t i = 0; i < options_.n_tokens; ++i) {
      reference.tokens.push_back(options_.generate ? writer.next(logits) : text[i]);
      logits = feed(*start.context, reference.tokens.back());
      reference.logits.emplace_back(logits.begin(), logits.end());
    }
    return reference;
  }

  Json compare(size_t arm, const Reference& reference) {
    const ArmStart start = arms_.start(arm);
    std::vector<double> divergences;
    size_t n_same_top = 0;
    for (size_t i = 0; i < reference.tokens.size(); ++i) {
      const auto log_q = log_softmax(feed(*start.context, reference.tokens[i]));
      const auto log_p = log_softmax(reference.logits[i]);
      divergences.push_back(kl_divergence(log_p, log_q));
      n_same_top += top(log_p) == top(log_q);
    }
    return {{"bits_per_element", start.usage.bits_per_element()},
            {"n_same_top", n_same_top},
            {"divergences", std::move(divergences)}};
  }

  const llama::Model& model_;
  const KldOptions& options_;
  Arms& arms_;
  RowLog& rows_;
  Progress& progress_;
};

/// What tokenize() puts before a text, if the model wants something there.
std::optional<llama::Token> beginning_of_text(const llama::Model& model) {
  // Compared with a text, because a model may want an end of the text as well, and the same token for both.
  const auto with = model.tokenize("a", true), without = model.tokenize("a", false);
  if (with.size() <= without.size() || !std::equal(without.begin(), without.end(), with.begin() + 1)) return {};
  return with.front();
}

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
  command.add_flag("--generate", generate, "feed what the model itself writes after the prompt, with the full cache");
  command.add_option("-s,--seed", seed, "of what is generated")->type_name("N")->capture_default_str();
}

void KldOptions::describe(Json& meta) const {
  meta.update({{"seed", generate ? Json(seed) : Json()},
               {"text", text},
               {"context", n_context},
               {"tokens", n_tokens},
               {"chunks", n_chunks},
               {"generate", generate},
               {"n_ubatch", n_ubatch}});
}

std::string KldOptions::contents() const {
  if (text.empty()) throw UserError("no text; give a plain text file with --text FILE");
  return readable_text(read_file(text, "text"), "--text " + text);
}

std::vector<std::vector<llama::Token>> KldOptions::chunks_of(const std::string& contents,
                                                             const llama::Model& model) const {
  const auto begin = beginning_of_text(model);
  const auto tokens = model.tokenize(contents, false);
  const size_t n_each = n_context + (generate ? 0 : n_tokens) - (begin ? 1 : 0), needed = n_chunks * n_each;
  if (tokens.size() < needed) {
    throw UserError(
        fmt::format("--text {} has {} tokens, but {} chunks of {} need {}; use a longer text or fewer --chunks", text,
                    tokens.size(), n_chunks, n_each, needed));
  }
  std::vector<std::vector<llama::Token>> chunks(n_chunks);
  for (size_t i = 0; i < n_chunks; ++i) {
    if (begin) chunks[i].push_back(*begin);
    const auto first = tokens.begin() + std::ptrdiff_t(i * n_each);
    chunks[i].insert(chunks[i].end(), first, first + std::ptrdiff_t(n_each));
  }
  return chunks;
}

void KldTally::add(const Json& row) {
  // JSON has no NaN.
  for (const Json& value : row.at("divergences")) divergences.push_back(value.is_number() ? value.get<double>() : NAN);
  n_same_top += row.at("n_same_top").get<size_t>();
  bits_per_element += row.at("bits_per_element").get<double>();
  n_chunks += 1;
}

std::vector<double> KldTally::by_position(size_t n_parts) const {
  std::vector<double> means;
  const size_t n_each = n_chunks ? divergences.size() / n_chunks : 0;
  for (size_t part = 0; part < n_parts && n_parts <= n_each; ++part) {
    std::vector<double> of_part;
    for (size_t chunk = 0; chunk < n_chunks; ++chunk) {
      const auto first = divergences.begin() + ptrdiff_t(chunk * n_each);
      of_part.insert(of_part.end(), first + ptrdiff_t(part * n_each / n_parts),
                     first + ptrdiff_t((part + 1) * n_each / n_parts));
    }
    means.push_back(mean(of_part));
  }
  return means;
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
                      const std::vector<std::vector<llama::Token>>& chunks, const KldOptions& options, int n_threads,
                      const std::string& title, RowLog& rows) {
  // The reference runs as an arm of its own, ahead of the others.
  choices.insert(choices.begin(), unwrap(llama::KvChoice::parse("full")));
  Arms arms(model, choices,
            {.n_ctx = (options.n_context + options.n_tokens + 255) / 256 * 256,
             .n_ubatch = options.n_ubatch,
             .n_threads = n_threads,
             .should_stop = interrupted});
  KldResult result;
  double work = 0.0;
  {
    Progress none("", 1.0);
    const ChunkRun plan(model, options, arms, rows, none);
    for (size_t i = 0; i < chunks.size(); ++i) work += plan.work(i);
  }
  Progress progress(title, work);
  arms.on_prefill = [&](size_t n) { progress.advance(double(n)); };
  ChunkRun chunk_run(model, options, arms, rows, progress);
  try {
    for (size_t i = 0; i < chunks.size(); ++i) chunk_run.run(chunks[i], i);
    rows.finish();
  } catch (const Interrupted&) {
    result.interrupted = true;
  } catch (const UserError& error) {
    throw UserError(error.what() + rows.hint());
  }
  progress.clear();
  for (size_t arm = 1; arm < arms.size(); ++arm) {
    KldTally& tally = result.tallies.emplace_back();
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (rows.has(i, choices[arm].name)) tally.add(rows.row(i, choices[arm].name));
    }
  }
  if (result.interrupted) rows.say_interrupted();
  return result;
}

}  // namespace mikv::cli
