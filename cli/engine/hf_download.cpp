// Models from Hugging Face, through llama.cpp's own download code: the same cache and environment as its tools.
#include <cstdlib>

#include "common.h"
#include "download.h"
#include "engine/engine.hpp"

namespace mikv::llama {

Result<std::string> fetch_hugging_face(const std::string& repo) {
  const auto cached = [&] { return common_download_resolve_path(repo); };
  try {
    common_params_model wanted;
    wanted.hf_repo = repo;
    common_download_opts options;
    if (const char* token = std::getenv("HF_TOKEN")) options.bearer_token = token;
    const auto plan = common_download_get_hf_plan(wanted, options);
    if (plan.primary.path.empty()) {
      if (std::string path = cached(); !path.empty()) return path;
      return Error{
          "cannot fetch --hf " + repo +
          ": no network, no such repository, or no GGUF in it; check the name as user/model[:quant], or use -m FILE"};
    }
    std::string path;
    std::vector<common_download_task> tasks;
    for (const auto& file : plan.model_files) tasks.emplace_back(file, options);
    common_download_run_tasks(tasks);
    for (const auto& file : plan.model_files) {
      const std::string final_path = hf_cache::finalize_file(file);
      if (file.path == plan.primary.path) path = final_path;
    }
    return path;
  } catch (const std::exception& failure) {
    if (std::string path = cached(); !path.empty()) return path;
    return Error{"cannot fetch --hf " + repo + ": " + failure.what() + "; check the network, or use -m FILE"};
  }
}

}  // namespace mikv::llama
