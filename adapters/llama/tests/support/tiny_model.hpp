// Models of a few hundred kilobytes with random weights, one for each way in which llama.cpp keeps a state. They say
// nothing sensible, but say it reproducibly, and every token depends on all before it.
#pragma once

#include <string>

namespace mikv::llama::test {

enum class Architecture {
  gemma3,  ///< two of three layers attend a sliding window of kTinyWindow tokens, in a cache of their own
  lfm2,    ///< hybrid: two attention layers between convolutions with a state
  mamba,   ///< recurrent: no KV cache
  bert     ///< an encoder: no cache at all
};

inline constexpr int kTinyWindow = 288;  ///< more than stay in f16 (kFirstTokens)
inline constexpr int kTinyVocabulary = 128;

/// Writes the model to `path` as GGUF; throws std::runtime_error if it cannot.
void write_tiny_model(Architecture architecture, const std::string& path);
/// A LoRA of the gemma3 model: what it adds to queries, keys and values is as large as they are.
void write_tiny_lora(const std::string& path);

}  // namespace mikv::llama::test
