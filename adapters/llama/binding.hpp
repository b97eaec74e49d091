// Binding: what mikv keeps for one llama.cpp context: the cache of each layer, and the operators that take the place of
// llama.cpp's own in its graphs.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"
#include "mikv/mikv.hpp"

namespace mikv::llama {

class Binding;

enum class OpKind { store_k, store_v, attend };

/// What a rewritten node carries: ggml hands it back to the operator as user data.
struct OpData {
  Binding* binding = nullptr;
  int layer = 0;
  OpKind kind = OpKind::attend;
};

struct Layer {
  std::unique_ptr<LayerCache> cache;
  uint32_t cells_per_stream = 0;  ///< llama.cpp's cell index = stream * cells_per_stream + cell; the stream is our frame
  std::vector<float> slopes;      ///< ALiBi, one a query head; empty without
  OpData ops[3];                  ///< by OpKind
  /// The half of K/V that was stored and still waits for the other one. llama.cpp stores both in two graph nodes.
  bool half_stored = false;
  OpKind stored_half = OpKind::store_k;
};

class Binding {
 public:
  Binding(const Spec& spec, const llama_context_params& params);

  /// The layer behind a FLASH_ATTN_EXT node over a cache tensor, created when first seen.
  /// Null, with the reason in failure(), if its attention is not supported.
  Layer* layer_of_attention(const ggml_tensor* attention);
  Layer* find_layer(int index);

  /// Tells how many tokens each sequence has in the step to come: one token is generation, more are a prompt.
  void begin_step(const llama_batch& batch);
  void begin_step_unknown() { tokens_in_step_.clear(); }
  bool is_generation(uint32_t stream, int64_t tokens_in_graph) const;

  void store(Layer& layer, OpKind kind, const ggml_tensor* node);
  void attend(Layer& layer, ggml_tensor* node, uint32_t thread, uint32_t n_threads);

  void fail(const std::string& message);  ///< keeps the first; safe from several threads
  Status failure() const;

  const Spec& spec() const { return spec_; }
  void set_spec(const Spec& spec) { spec_ = spec; }
  std::map<int, Layer>& layers() { return layers_; }
  const std::map<int, Layer>& layers() const { return layers_; }
  uint32_t n_threads() const { return workspace_.max_threads(); }
  void clear();

 private:
  AttendArgs stream_args(const Layer& layer, ggml_tensor* node, int64_t stream, const FrameId& frame) const;

  Spec spec_;
  uint32_t n_streams_;
  Workspace workspace_;
  std::map<int, Layer> layers_;
  std::vector<uint32_t> tokens_in_step_;  ///< by stream; empty: not known
  mutable std::mutex failure_mutex_;
  Status failure_;
};

/// "cache_k_l12" -> 12 and which of the two; -1 for any other tensor. Looks at the tensor that `t` is a view of.
int cache_layer(const ggml_tensor* t);
bool is_key_cache(const ggml_tensor* t);

/// FLASH_ATTN_EXT parameters that a rewritten node keeps behind those of GGML_OP_CUSTOM.
struct AttentionParams {
  float scale, max_bias, softcap;
};
inline constexpr size_t kSavedParams = 32;  // byte offset in op_params, behind ggml's function, task count and user data

}  // namespace mikv::llama
