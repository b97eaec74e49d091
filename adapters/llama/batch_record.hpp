// BatchRecord: which sequences a batch's tokens belong to, and which tokens want logits. Graphs do not tell.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "llama.h"

namespace mikv::llama {

struct BatchRecord {
  struct Token {
    llama_seq_id sequence;
    bool output;
  };
  std::vector<Token> tokens;
  std::vector<std::pair<uint32_t, llama_seq_id>> shared;  ///< further sequences of a token

  static BatchRecord of(const llama_batch& batch);
};

/// llama_batch_ext is opaque: what it holds is known from the calls that fill it. Safe from several threads.
void record_clear(const llama_batch_ext* batch);
void record_add(const llama_batch_ext* batch, llama_seq_id sequence);
void record_shared(const llama_batch_ext* batch, uint32_t token, llama_seq_id sequence);
void record_output(const llama_batch_ext* batch, uint32_t token, bool value);
void record_free(const llama_batch_ext* batch);
BatchRecord recorded(const llama_batch_ext* batch);

}  // namespace mikv::llama
