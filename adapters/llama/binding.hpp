// Binding: a mikv::Context for one llama.cpp context, and the operators that replace llama.cpp's own in its graphs. It
// turns tensors into spans; tokens and their payload are the Context's.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "graph/rope_operator.hpp"
#include "graph/row_copy.hpp"
#include "interpose/batch_record.hpp"
#include "kv_context.hpp"
#include "llama.h"
#include "mikv/context.hpp"
#include "mikv/report.hpp"

namespace mikv::llama {

class Binding;

enum class OpKind { store_k, store_v, attend, shift };

/// User data of a rewritten node, which ggml hands to the operator.
struct OpData {
  Binding* binding = nullptr;
  int layer = 0;
  OpKind kind = OpKind::attend;
  bool last_half = false;  ///< the second of the two nodes that store K and V of a layer
};

/// What graphs say about a layer.
struct LayerTensors {
  const ggml_tensor *k = nullptr, *v = nullptr;  ///< llama.cpp's own, which are empty; borrowed
  uint32_t cells_per_stream = 0;                 ///< llama.cpp's cell index = stream * cells_per_stream + cell
  std::vector<float> slopes;                     ///< ALiBi, one per query head; empty without
  bool rope_known = false;
  RopeParams shift_rope{};  ///< of the node that shift() replaces
  OpData ops[4];            ///< by OpKind
};

class Binding : private CellOwner {
 public:
  /// Errors: the Context's.
  static Result<std::unique_ptr<Binding>> create(const Spec& spec, const llama_model* model,
                                                 const llama_context_params& params, AttentionBy attention_by,
                                                 std::shared_ptr<MemoryAccount> account);

  Context& cache() { return *cache_; }
  const Context& cache() const { return *cache_; }
  void set_context(llama_context* context) { context_ = context; }
  llama_context* context() const { return context_; }

  // Graphs (graph_rewrite.cpp, operators.cpp).

  /// The layer of a FLASH_ATTN_EXT node over a cache tensor, declared when first seen. Null, with the reason in
  /// cache().failure(), if its attention is not supported.
  LayerTensors* layer_of_attention(const ggml_tensor* attention);
  LayerTensors* find_layer(int index);
  const std::map<int, LayerTensors>& layers() const { return layers_; }
  /// Reads the layer's RoPE off the node that stores its keys, once.
  void learn_rope(int index, const ggml_tensor* store_k);
  void store(LayerTensors& layer, const OpData& op, const ggml_tensor* node);
  void attend(const LayerTensors& layer, const OpData& op, ggml_tensor* node, uint32_t thread, uint32_t n_threads);
  /// Rotates stored keys as the ROPE node would rotate llama.cpp's own: source 1 has each cell's shift in positions.
  void shift(const LayerTensors& layer, const OpData& op, const ggml_tensor* node, uint32_t thread, uint32_t n_threads);

  bool engine_attends() const { return engine_attends_; }
  /// Lets a node of llama.cpp's own attention read the rows that store() copies for it. All layers must be known.
  void redirect(ggml_tensor* attention);
  void fail(const std::string& message) { cache_->fail(Error{ErrorCode::unsupported, message}); }

  // Steps (hooks.cpp).

  /// Returns 0, or the result of a llama_decode that must not run; cache().failure() says why.
  int32_t begin_step(BatchRecord record);
  /// status: of llama_decode. Returns false if the step failed on our side: its output is invalid then.
  bool end_step(int32_t status);
  /// Prints the error of a call between steps that cannot report it, if failures are printed.
  void note(const Status& status) const;

  /// Prints failures from now on, and what was measured, for programs that do not know mikv.
  void print_failures() { prints_failures_ = true; }
  void say_what_was_measured() const;
  /// Notes figures in this report from now on. Borrowed; null: in none.
  void report_to(Report* report) { report_ = report; }
  void note_figures() const {
    if (report_) report_->note(*cache_);
  }
  void finish_report() const {
    if (report_) report_->finish(*cache_);
  }

  /// A state kept for a program that asked for its size; the next step drops it.
  struct SavedState {
    llama_seq_id sequence = 0;
    llama_state_seq_flags flags = 0;
    std::vector<uint8_t> bytes;
  };
  SavedState& saved_state() { return saved_state_; }

 private:
  Binding() = default;

  Result<CellsByLayer> live_cells() override;
  Result<EngineState> save(SequenceId sequence, bool partial) override;
  Result<CellsByLayer> load(SequenceId sequence, bool partial, const EngineState& state) override;
  void drop(SequenceId sequence) override;

  /// Removes from llama.cpp's table what a step added whose rows are not all stored: nothing is answered from a part.
  void take_back();
  /// Arguments of one stream of the node.
  AttendArgs args_of(const LayerTensors& layer, ggml_tensor* node, int64_t stream) const;
  void copy_rows(int index, const LayerTensors& layer);

  std::unique_ptr<Context> cache_;
  llama_context* context_ = nullptr;
  std::map<int, LayerTensors> layers_;
  std::vector<CellPlace> places_;  ///< kept: a generation step allocates nothing
  bool engine_attends_ = false;
  bool embeds_ = false;                                     ///< outputs are embeddings, not probabilities
  std::vector<bool> punctuation_;                           ///< by token id; empty: the policy does not ask
  std::vector<std::pair<llama_seq_id, llama_pos>> before_;  ///< sequences of the step, and where they ended before it
  RowCopy row_copy_;
  SavedState saved_state_;
  bool prints_failures_ = false;
  Report* report_ = nullptr;
};

/// "cache_k_l12" -> 12; -1 for any other tensor. Reads the name of the tensor that `t` is a view of.
int cache_layer(const ggml_tensor* t);
bool is_key_cache(const ggml_tensor* t);

/// Parameters of FLASH_ATTN_EXT. A rewritten node keeps them behind those of GGML_OP_CUSTOM.
struct AttentionParams {
  float scale, max_bias, softcap;
};
/// The node may be rewritten or not.
AttentionParams attention_params(const ggml_tensor* attention);
inline constexpr size_t kSavedParams =
    32;  // byte offset in op_params, behind ggml's function, task count and user data
static_assert(kSavedParams + sizeof(AttentionParams) <= GGML_MAX_OP_PARAMS);

}  // namespace mikv::llama
