// The flags that every command with a model shares, and loading what they name.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "json_report.hpp"

namespace mikv::cli {

struct ModelOptions {
  std::string model;
  std::string hugging_face;
  int n_threads = 0;  ///< 0: as many as there are cores
  bool verbose = false;

  void add_to(CLI::App& command);
  bool given() const { return !model.empty() || !hugging_face.empty(); }

  /// Loads -m or --hf. Throws UserError.
  std::unique_ptr<llama::Model> load() const;
  int threads() const;
  /// As people call the model: the file's name without .gguf, or the repository.
  std::string name() const;

  /// What a report says about them.
  void describe(const llama::Model& loaded, Json& meta) const;
};

/// A range check that shows in help as "N:1..512".
CLI::Validator in_range(double low, double high);

/// --ubatch, keeping the default it finds.
void add_ubatch_option(CLI::App& command, uint32_t& n_ubatch);

/// The arm that speeds are compared with.
inline constexpr const char* kBaseline = "llama:f16";

/// --kv with a default list, its help naming presets and stock types.
void add_kv_option(CLI::App& command, std::string& list, const std::string& default_list);
/// Throws UserError.
std::vector<llama::KvChoice> parse_kv_option(const std::string& list);

/// A line on stderr if a context is longer than those that the model has seen.
void warn_beyond_training(const llama::Model& model, uint32_t n_ctx);

/// Throws UserError if `n_tokens` do not fit a context of `n_ctx`.
void require_fits(size_t n_tokens, uint32_t n_ctx, const std::string& what);

}  // namespace mikv::cli
