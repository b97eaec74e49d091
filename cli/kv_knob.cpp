#include "kv_knob.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string_view>

#include "check.hpp"
#include "model_options.hpp"

namespace mikv::embedded {
extern const std::string_view kv_table_json;
}  // namespace mikv::embedded

namespace mikv::cli {
namespace {

constexpr uintmax_t kMaxSidecarBytes = 1 << 20;

struct Source {
  std::vector<TunedSpec> rows;
  std::string name;
};

Source find_table(const llama::ModelInfo& info, const std::string& named) {
  const std::string path = named.empty() ? sidecar_path(info) : named;
  std::error_code failure;
  if (named.empty() && !std::filesystem::exists(path, failure)) {
    return {read_tuning(std::string(embedded::kv_table_json), "", "built-in table"),
            "built-in table; `mikv tune` measures this model"};
  }
  const uintmax_t size = std::filesystem::file_size(path, failure);  // an error where it is no regular file
  if (failure || size > kMaxSidecarBytes)
    throw UserError(path + " is no tuning table; run `mikv tune` again or delete it");
  return {read_tuning(read_file(path, "tuning table"), fingerprint(info), path), path};
}

}  // namespace

std::string fingerprint(const llama::ModelInfo& info) {
  const LayerShape shape = info.layers.empty() ? LayerShape() : info.layers.front();
  return fmt::format("{}, {} parameters, {} bytes, {} layers of {}/{} heads of {}/{}", info.description, info.n_params,
                     info.n_bytes, info.layers.size(), shape.n_heads, shape.n_kv_heads, shape.head_dim_k,
                     shape.head_dim_v);
}

std::vector<std::string> names_of(const std::vector<llama::KvChoice>& choices) {
  std::vector<std::string> names;
  for (const llama::KvChoice& choice : choices) names.push_back(choice.name);
  return names;
}

std::string sidecar_path(const llama::ModelInfo& info) { return info.path + ".mikv.json"; }

std::vector<TunedSpec> read_tuning(const std::string& text, const std::string& wanted, const std::string& path) {
  const auto refuse = [&](const std::string& why) {
    throw UserError(fmt::format("{} {}; run `mikv tune` again or delete it", path, why));
  };
  const Json document = Json::parse(text, nullptr, false);
  std::vector<TunedSpec> rows;
  try {
    if (document.is_discarded()) refuse("is no JSON");
    const std::string made_for = document.at("meta").at("fingerprint");
    if (!wanted.empty() && made_for != wanted) refuse(fmt::format("is of another model ({})", made_for.substr(0, 120)));
    for (const Json& row : document.at("rows")) {
      rows.push_back({row.at("kv"), row.at("bits_per_element"), row.at("mean")});
      const TunedSpec& last = rows.back();
      if (!Spec::parse(last.spec)) refuse("names a spec that this version does not know");
      if (!(last.bits_per_element > 0.0) || !(last.mean_kld >= 0.0)) refuse("has a row without figures");
    }
  } catch (const Json::exception&) {
    refuse("is no tuning table");
  }
  if (rows.empty()) refuse("has no rows");
  std::ranges::sort(rows, {}, &TunedSpec::bits_per_element);
  return rows;
}

const TunedSpec& pick_by_quality(const std::vector<TunedSpec>& rows, double kld) {
  for (const TunedSpec& row : rows) {
    if (row.mean_kld <= kld) return row;
  }
  const TunedSpec& best = *std::ranges::min_element(rows, {}, &TunedSpec::mean_kld);
  throw UserError(
      fmt::format("--kv-quality {}: the nearest that was measured is {:.4f} with {}; ask for that, or use --kv full",
                  kld, best.mean_kld, best.spec));
}

const TunedSpec& pick_by_bits(const std::vector<TunedSpec>& rows, double bits) {
  if (bits >= rows.back().bits_per_element) return rows.back();
  const TunedSpec* best = nullptr;
  for (const TunedSpec& row : rows) {
    if (row.bits_per_element <= bits && (!best || row.mean_kld < best->mean_kld)) best = &row;
  }
  if (best) return *best;
  throw UserError(fmt::format("--kv-bits {}: the smallest that was measured takes {:.2f} ({}); ask for more", bits,
                              rows.front().bits_per_element, rows.front().spec));
}

void KvKnob::add_to(CLI::App& command) {
  auto* by_quality = command.add_option(
      "--kv-quality", quality,
      "smallest measured cache whose mean KL divergence to the full one is at most KLD; see `mikv tune`");
  by_quality->type_name("KLD")->check(in_range(1e-6, 100.0));
  command.add_option("--kv-bits", bits, "best measured cache of at most BITS per element; see `mikv tune`")
      ->type_name("BITS")
      ->check(in_range(0.1, 32.0))
      ->excludes(by_quality);
  command
      .add_option("--kv-table", table, "the table that these pick from, of `mikv tune -o` (default: the model's own)")
      ->type_name("FILE.json");
}

void KvKnob::check() const {
  if (table.empty()) return;
  if (!given()) throw UserError("--kv-table is what --kv-quality or --kv-bits pick from; give one of them too");
  std::error_code failure;
  if (!std::filesystem::exists(table, failure))
    throw UserError(fmt::format("no tuning table {}; `mikv tune -m MODEL --text FILE -o {}` writes one", table, table));
}

std::string KvKnob::pick(const llama::Model& model) const {
  const Source source = find_table(model.info(), table);
  const TunedSpec& row = quality > 0.0 ? pick_by_quality(source.rows, quality) : pick_by_bits(source.rows, bits);
  const bool largest = quality <= 0.0 && bits >= source.rows.back().bits_per_element;
  fmt::print(stderr, "mikv: {} gives --kv {}: {:.2f} bits per element, KL divergence {:.4f} ({}{})\n",
             quality > 0.0 ? fmt::format("--kv-quality {}", quality) : fmt::format("--kv-bits {}", bits), row.spec,
             row.bits_per_element, row.mean_kld, source.name,
             largest ? "; the largest that was measured, --kv full is exact" : "");
  return row.spec;
}

void KvKnob::add_choice(const llama::Model& model, std::vector<llama::KvChoice>& choices) const {
  if (!given()) return;
  const std::string spec = pick(model);
  if (std::ranges::any_of(choices, [&](const llama::KvChoice& choice) { return choice.name == spec; })) return;
  choices.push_back(unwrap(llama::KvChoice::parse(spec)));
}

}  // namespace mikv::cli
