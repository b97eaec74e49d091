// Binding: what mikv keeps for one llama.cpp context: the cache of each layer, and the operators that take the place of
// llama.cpp's own in its graphs.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "batch_record.hpp"
#include "cell_capture.hpp"
#include "ggml-backend.h"
#include "ggml.h"
#include "kv_context.hpp"
#include "llama.h"
#include "mikv/mikv.hpp"
#include "rope_operator.hpp"
#include "row_copy.hpp"
#include "sequences.hpp"
#include "step_plan.hpp"

namespace mikv::llama {

class Binding;

/// Something of the segment is compressed already, or `from` tokens are staged with the n_to_come that are not yet.
bool commits_from(uint32_t from, const LayerCache& cache, SegmentId segment, uint32_t n_to_come = 0);

enum class OpKind { store_k, store_v, attend, shift };

/// What a rewritten node carries: ggml hands it back to the operator as user data.
struct OpData {
  Binding* binding = nullptr;
  int layer = 0;
  OpKind kind = OpKind::attend;
  bool last_half = false;  ///< of the two nodes that store K and V of a layer, the one that comes second
};

struct Layer {
  std::unique_ptr<LayerCache> cache;
  const ggml_tensor *k_tensor = nullptr, *v_tensor = nullptr;  ///< llama.cpp's own, which hold nothing; borrowed
  uint32_t cells_per_stream = 0;  ///< llama.cpp's cell index = stream * cells_per_stream + cell
  uint32_t first_row = 0,
           next_row = 0;      ///< tokens of the batch that the graph at work stores: first_row .. next_row - 1
  std::vector<float> slopes;  ///< ALiBi, one a query head; empty without
  bool rope_known = false;
  RopeParams shift_rope{};  ///< of the node that shift() stands for
  OpData ops[4];            ///< by OpKind
};

class Binding {
 public:
  /// AttentionBy::engine holds for an uncompressed spec only; any other is mikv's.
  Binding(const Spec& spec, const llama_model* model, const llama_context_params& params, AttentionBy attention_by);

  /// The layer behind a FLASH_ATTN_EXT node over a cache tensor, created when first seen.
  /// Null, with the reason in failure(), if its attention is not supported.
  Layer* layer_of_attention(const ggml_tensor* attention);
  Layer* find_layer(int index);
  /// From the node that stores the layer's keys, the first time.
  void learn_rope(Layer& layer, const ggml_tensor* store_k);

  /// Brings the cache up to date with llama.cpp's cells and plans the step to come. Returns 0, or what llama_decode
  /// shall return without having tried; failure() says why.
  int32_t begin_step(const BatchRecord& batch);
  /// `status` is llama_decode's. False if the step failed on our side: its output means nothing then.
  bool end_step(int32_t status);

  void store(Layer& layer, const OpData& op, const ggml_tensor* node);
  void attend(Layer& layer, ggml_tensor* node, uint32_t thread, uint32_t n_threads);
  /// Rotates the stored keys as the ROPE node over llama.cpp's own would have: source 1 has by how many positions each
  /// cell moves.
  void shift(const Layer& layer, const ggml_tensor* node, uint32_t thread, uint32_t n_threads);

  bool engine_attends() const { return engine_attends_; }
  /// Lets a node of llama.cpp's own attention read the rows that store() copies for it. All layers are known by now.
  void redirect(ggml_tensor* attention);

  void fail(const std::string& message);  ///< keeps the first; safe from several threads
  Status failure() const;

  const Spec& spec() const { return spec_; }
  void set_spec(const Spec& spec) { spec_ = spec; }
  std::map<int, Layer>& layers() { return layers_; }
  const std::map<int, Layer>& layers() const { return layers_; }
  uint32_t n_threads() const { return workspace_.max_threads(); }
  void clear();
  MemoryUsage memory_usage() const;

  /// The sequence holds no tokens any more; kAllSequences: none does.
  void forget_sequence(llama_seq_id sequence);
  /// Before llama_memory_seq_cp.
  void copy_sequence(llama_seq_id from, llama_seq_id to);

  /// Failures are printed: the program that runs knows nothing of them.
  void print_failures() { prints_failures_ = true; }
  /// Figures go to this file, see report.hpp.
  void report_to(const std::string& file) { report_file_ = file; }
  const std::string& report_file() const { return report_file_; }
  void set_context(llama_context* context) { context_ = context; }
  llama_context* context() const { return context_; }
  Sequences& sequences() { return sequences_; }
  const Sequences& sequences() const { return sequences_; }
  /// Some cells may have been freed: what they held is forgotten before it is looked at again.
  void cells_freed() {
    cells_freed_ = true;
    saved_state_ = {};
  }
  /// Forgets what llama.cpp's cells do not hold any more, if cells were freed.
  Status forget_freed_cells();
  /// What these cells, by layer, held before is forgotten in every segment.
  void forget_cells(const std::map<int, std::vector<StreamCell>>& cells);
  /// What in the context's parameters changes the meaning of stored keys.
  const std::string& parameters() const { return parameters_; }
  /// The segment has no tokens in any layer.
  bool is_empty(SegmentId segment) const;

  /// What save_state() made for a program that asked for the size; dropped by the next step.
  struct SavedState {
    llama_seq_id sequence = 0;
    llama_state_seq_flags flags = 0;
    std::vector<uint8_t> bytes;
  };
  SavedState& saved_state() { return saved_state_; }

  /// The most that the payload of all contexts may take; 0: no limit.
  void set_budget(uint64_t bytes) { budget_ = bytes; }
  uint64_t budget() const { return budget_; }
  uint64_t n_steps() const { return n_steps_; }
  uint64_t n_lowered() const { return n_lowered_; }  ///< how often the cache was made smaller
  uint64_t n_refused() const { return n_refused_; }  ///< steps that did not fit

  /// LayerCache::share_bits() over the layers that commit(segment, from) would compress, n_to_come tokens later: before
  /// it does.
  void share_bits(SegmentId segment, uint32_t from, uint32_t n_to_come = 0);

 private:
  /// Attention compresses what the run puts, at once, once commit_from(run) tokens of its segment are staged.
  bool commits(const StepPlan::Run& run) const;
  uint32_t commit_from(const StepPlan::Run& run) const;
  /// What waits until there are n_tokens waits for fewer where there is no room for them.
  uint32_t pressed(uint32_t n_tokens) const;
  /// Compresses prompts that ended with the step before, if nothing is generated from them at once.
  void commit_idle();
  /// What a prompt goes on with, after n_tokens or more that are compressed, is better off in coordinates of its own.
  void move_on(uint32_t n_tokens);
  uint32_t n_streamed(llama_seq_id sequence) const;
  uint64_t bytes_of_step() const;
  /// Holds the budget for the step that is planned. 0, or what llama_decode shall return.
  int32_t make_room();
  /// A call's rows first..first+n-1 of the node's stream `stream`.
  AttendArgs rows_args(const Layer& layer, ggml_tensor* node, int64_t stream, uint32_t first, uint32_t n) const;
  /// What a node stores in one segment.
  struct Part {
    SegmentId segment = 0;
    uint32_t stream = 0;
    bool generates = false;      ///< see StepPlan::Run
    std::vector<Cell> cells;     ///< of the stream
    std::vector<uint32_t> rows;  ///< of the node, one for each cell
  };
  /// Of a node that stores n_rows rows at `indices`; empty, with a failure, if it cannot be told. Valid until the next
  /// call.
  std::span<const Part> parts_of(const Layer& layer, const ggml_tensor* indices, int64_t n_rows);
  Status stage(Layer& layer, std::span<const Part> parts);
  void copy_rows(const Layer& layer);
  const StepPlan::Run* run_of_row(uint32_t stream, uint32_t row) const;

  Spec spec_;
  Sequences sequences_;
  std::string parameters_, report_file_;
  bool rows_in_order_;
  Workspace workspace_;
  bool engine_attends_;
  RowCopy row_copy_;
  llama_context* context_ = nullptr;
  std::map<int, Layer> layers_;
  StepPlan plan_;
  std::vector<Part> parts_;  // kept, as is what comes next: a generation step allocates nothing
  std::vector<float> gathered_;
  std::vector<SegmentId> may_have_ended_;  ///< segments of the step before, see StepPlan::Run::may_end
  SavedState saved_state_;
  bool cells_freed_ = false;
  bool prints_failures_ = false;
  uint64_t budget_ = 0, n_steps_ = 0, n_lowered_ = 0, n_refused_ = 0;
  std::chrono::steady_clock::time_point refused_at_;
  uint32_t n_ubatch_;
  /// There is no room for the step in f16: prompts are compressed with it, once they have so many tokens.
  std::optional<uint32_t> pressed_from_;
  bool was_pressed_ = false;      ///< that was said
  bool staged_in_bytes_ = false;  ///< some prompt had no room in f16
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
/// Of the node before or after it was rewritten.
AttentionParams attention_params(const ggml_tensor* attention);
inline constexpr size_t kSavedParams =
    32;  // byte offset in op_params, behind ggml's function, task count and user data

}  // namespace mikv::llama
