// One knob instead of a spec: --kv-quality KLD and --kv-bits B pick a spec from a table of measurements.
//
// The table is the one of --kv-table, else what `mikv tune` wrote beside the model (MODEL.gguf.mikv.json); for a model
// that was never tuned, one that is built in (kv_table.json), in which each spec has the worst divergence of the models
// it was measured on.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "json_report.hpp"

namespace mikv::cli {

/// A spec and what it was measured to do.
struct TunedSpec {
  std::string spec;
  double bits_per_element = 0.0;
  double mean_kld = 0.0;
};

/// What the sidecar of a model says it was made for. A model of another size, type or shape has another one.
std::string fingerprint(const llama::ModelInfo& info);
std::string sidecar_path(const llama::ModelInfo& info);
/// As the user wrote them.
std::vector<std::string> names_of(const std::vector<llama::KvChoice>& choices);

/// The rows of a table. Throws UserError if the document is not one, or is one of another model (`wanted` not empty).
std::vector<TunedSpec> read_tuning(const std::string& text, const std::string& wanted, const std::string& path);

/// The smallest spec whose divergence is at most `kld`. Throws UserError if there is none.
const TunedSpec& pick_by_quality(const std::vector<TunedSpec>& rows, double kld);
/// The spec of least divergence among those of at most `bits`; the largest if all are. Throws UserError if there is
/// none.
const TunedSpec& pick_by_bits(const std::vector<TunedSpec>& rows, double bits);

struct KvKnob {
  double quality = 0.0;  ///< 0: not given
  double bits = 0.0;
  std::string table;  ///< of --kv-table; empty: the model's own, else the one that is built in

  void add_to(CLI::App& command);
  bool given() const { return quality > 0.0 || bits > 0.0; }
  /// Throws UserError if there is a table and nothing to pick from it, or no such table.
  void check() const;
  /// The spec, with a line on stderr that says why it was picked.
  std::string pick(const llama::Model& model) const;
  /// Adds it to a list, unless it is there already; nothing if no knob was given.
  void add_choice(const llama::Model& model, std::vector<llama::KvChoice>& choices) const;
};

}  // namespace mikv::cli
