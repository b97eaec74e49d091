// What attention is timed over: keys, values and queries of a shape, and a context that holds them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/flash_attn_bench.hpp"
#include "mikv/context.hpp"
#include "mikv/rising_cells.hpp"

namespace mikv::cli {

/// Of the content.
struct ContentOptions {
  uint32_t window = 0;   ///< tokens that a query sees at most; 0: all before it
  uint32_t n_sinks = 0;  ///< query heads of a group whose attention goes to the first token
  uint64_t seed = 1;
};

/// The same content for all arms and layers: what a layer holds makes no difference to its time, but where it is does.
struct Content {
  std::vector<float> k, v;     ///< [n_tokens][n_kv_heads][head_dim]
  std::vector<float> q;        ///< [n_queries][n_heads][head_dim]
  std::vector<uint16_t> mask;  ///< [n_queries][n_tokens]: causal
};

Content make_content(const llama::FlashAttnProblem& problem, const ContentOptions& options);

/// Throws UserError if the query tokens, the last ones cached, are more than the fewest tokens cached.
void check_queries(uint32_t n_queries, const std::vector<uint32_t>& n_tokens);

/// Cells that a query sees: itself and those before it, at most a window's worth.
uint32_t n_visible(const llama::FlashAttnProblem& problem, uint32_t window, uint32_t query);

/// The problem's attention over the content; `out` has output_size() elements.
AttendArgs make_args(const llama::FlashAttnProblem& problem, const Content& content, float* out);
size_t output_size(const llama::FlashAttnProblem& problem);

/// A context that holds the content in each of its layers: all but the tokens of a prompt's present chunk compressed,
/// as they are in use. A step of those tokens is open, or of one more. Borrows problem and content.
class FilledContext {
 public:
  FilledContext(const llama::FlashAttnProblem& problem, const Content& content, const Spec& spec, uint32_t n_threads);

  Context& get() { return *context_; }

  /// Begins a step of the n tokens that follow.
  void begin(uint32_t n, bool generated);
  void end();
  /// Stores the step's tokens. Beyond the content they are as tokens before them: what they hold makes no difference.
  void store(uint32_t layer);

 private:
  static constexpr uint32_t kMaxTokens = 1u << 24;

  const llama::FlashAttnProblem& problem_;
  const Content& content_;
  RisingCells cells_;
  std::unique_ptr<Context> context_;
  std::vector<CellPlace> places_;
  uint32_t n_tokens_ = 0, first_ = 0, next_ = 0;
};

}  // namespace mikv::cli
