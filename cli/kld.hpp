// KL divergence of the next token's distribution to the full cache's, for several caches on the same text.
//
// The text is tokenised once, as text: what looks like a control token is none. Chunk i is `n_context` tokens as a
// prompt, compressed at its end, and the next `n_tokens` tokens fed one by one. Each chunk begins with BOS where the
// model wants one, as in llama-perplexity: some models are next to random without it. With `generate` these tokens are
// not the text's, but what the model itself writes after the prompt with the uncompressed cache. After each of the
// tokens that are fed the distribution is compared with the one that our uncompressed cache gives.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "json_report.hpp"
#include "model_options.hpp"
#include "row_log.hpp"

namespace mikv::cli {

/// The text and how it is cut; what eval kld and tune have in common.
struct KldOptions {
  std::string text;
  uint32_t n_context = 1024;
  uint32_t n_tokens = 64;
  uint32_t n_chunks = 5;
  uint32_t n_ubatch = 256;
  bool generate = false;
  uint32_t seed = 1;  ///< of what is generated

  void add_to(CLI::App& command);
  void describe(Json& meta) const;
  /// The text. Throws UserError if none was given or it cannot be read.
  std::string contents() const;
  /// The chunks, of n_context tokens each, and n_tokens more unless they are generated. Throws UserError if the text is
  /// too short.
  std::vector<std::vector<llama::Token>> chunks_of(const std::string& contents, const llama::Model& model) const;
};

/// What one cache gave, over all tokens that were compared.
struct KldTally {
  std::vector<double> divergences;  ///< of a chunk after the other
  size_t n_same_top = 0;
  double bits_per_element = 0.0;  ///< summed over chunks
  size_t n_chunks = 0;

  double same_top() const { return divergences.empty() ? 0.0 : double(n_same_top) / double(divergences.size()); }
  /// Adds a row of a chunk.
  void add(const Json& row);
  double mean_bits() const { return n_chunks ? bits_per_element / double(n_chunks) : 0.0; }
  /// Means of n parts of a chunk, first to last, over all chunks: whether errors grow with what is generated.
  std::vector<double> by_position(size_t n_parts) const;
  /// mean, median, p99, p999, max, same_top, bits_per_element, n.
  Json to_json() const;
};

struct KldResult {
  std::vector<KldTally>
      tallies;  ///< of the choices, in their order; an interrupted chunk counts for those that finished it
  bool interrupted = false;
};

/// Measures every choice, with progress on stderr under `title`. Rows go to `rows`, and those that it has are not
/// measured again.
KldResult measure_kld(const llama::Model& model, std::vector<llama::KvChoice> choices,
                      const std::vector<std::vector<llama::Token>>& chunks, const KldOptions& options, int n_threads,
                      const std::string& title, RowLog& rows);

}  // namespace mikv::cli
