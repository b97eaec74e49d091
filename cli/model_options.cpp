#include "model_options.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>

#include "check.hpp"
#include "model_store.hpp"
#include "progress.hpp"

namespace mikv::cli {

void ModelOptions::add_to(CLI::App& command) {
  auto* file =
      command.add_option("-m,--model", model, "GGUF file, or a name from `mikv model list`")->type_name("FILE|NAME");
  command.add_option("--hf", hugging_face, "model from Hugging Face, e.g. Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M")
      ->type_name("USER/MODEL[:QUANT]")
      ->excludes(file);
  command.add_option("-t,--threads", n_threads, "threads to compute with (default: the physical cores)")
      ->type_name("N")
      ->check(in_range(1, 512));
  command.add_flag("--verbose", verbose, "show llama.cpp's own log");
}

std::string ModelOptions::name() const {
  if (!hugging_face.empty()) return hugging_face;
  const std::filesystem::path file = std::filesystem::path(model).filename();
  return (file.extension() == ".gguf" ? file.stem() : file).string();
}

int ModelOptions::threads() const { return n_threads > 0 ? n_threads : llama::default_threads(); }

std::unique_ptr<llama::Model> ModelOptions::load() const {
  llama::set_verbose(verbose);
  if (!given()) throw UserError("no model given; use -m FILE, -m NAME (see `mikv model list`) or --hf user/model");
  const std::string path =
      hugging_face.empty() ? resolve_model(model) : unwrap(llama::fetch_hugging_face(hugging_face));
  const InterruptEndsAtOnce at_once;  // llama.cpp cannot be told to stop while it loads
  require_model_file(path);
  return unwrap(llama::Model::load(path));
}

void ModelOptions::describe(const llama::Model& loaded, Json& meta) const {
  const auto& info = loaded.info();
  meta["model"] = hugging_face.empty() ? model : hugging_face;
  meta["model_file"] = info.path;
  meta["model_description"] = info.description;
  meta["llama_cpp"] = llama::llama_version();
  meta["threads"] = threads();
  const char* wait_policy = std::getenv("OMP_WAIT_POLICY");  // busy_machine.hpp
  meta["omp_wait_policy"] = wait_policy ? Json(wait_policy) : Json();
}

CLI::Validator in_range(double low, double high) {
  const auto check = [=](const std::string& text) -> std::string {
    double value = 0.0;
    if (CLI::detail::lexical_cast(text, value) && value >= low && value <= high) return {};
    return fmt::format("{} is out of range; use {} to {}", text, low, high);
  };
  return CLI::Validator(check, fmt::format("{}..{}", low, high));
}

void add_ubatch_option(CLI::App& command, uint32_t& n_ubatch) {
  command
      .add_option("--ub,--ubatch-size", n_ubatch,
                  "tokens of a prompt that are computed at once; prefill=streaming compresses after each such chunk")
      ->type_name("N")
      ->check(in_range(2, 1 << 16))
      ->capture_default_str();
}

void add_kv_option(CLI::App& command, std::string& list, const std::string& default_list) {
  list = default_list;
  command
      .add_option("--kv", list,
                  "caches to compare, e.g. full,mikv:keep=0.2,lo=int2,llama:q8_0; see `mikv info` for the presets")
      ->type_name("SPEC[,SPEC...]")
      ->capture_default_str();
}

std::vector<llama::KvChoice> parse_kv_option(const std::string& list) { return unwrap(llama::parse_kv_list(list)); }

void warn_beyond_training(const llama::Model& model, uint32_t n_ctx) {
  const uint32_t trained = model.info().n_ctx_train;
  if (trained == 0 || n_ctx <= trained) return;
  fmt::print(
      stderr,
      "mikv: -c {} is more than the {} tokens that the model was trained for; beyond them it may make no sense\n",
      n_ctx, trained);
}

void require_fits(size_t n_tokens, uint32_t n_ctx, const std::string& what) {
  if (n_tokens <= n_ctx) return;
  throw UserError(fmt::format("{} has {} tokens, but the context holds {}; raise it with -c {}", what, n_tokens, n_ctx,
                              (n_tokens + 255) / 256 * 256));
}

}  // namespace mikv::cli
