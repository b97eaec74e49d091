#include "interpose/batch_record.hpp"

#include <map>
#include <mutex>

namespace mikv::llama {
namespace {

// Never destroyed: globals of a program may free their batches after ours are gone.
std::mutex& mutex = *new std::mutex;
std::map<const llama_batch_ext*, BatchRecord>& records = *new std::map<const llama_batch_ext*, BatchRecord>;

}  // namespace

BatchRecord batch_of(const llama_batch& batch) {
  BatchRecord record;
  for (int32_t i = 0; i < batch.n_tokens; ++i) {
    const bool named = batch.n_seq_id && batch.seq_id && batch.n_seq_id[i] > 0;
    // Without flags the last token alone has logits.
    const bool output = batch.logits ? batch.logits[i] != 0 : i + 1 == batch.n_tokens;
    record.batch.tokens.push_back({named ? batch.seq_id[i][0] : 0, output});
    record.ids.push_back(batch.token ? batch.token[i] : LLAMA_TOKEN_NULL);
    for (int32_t s = 1; named && s < batch.n_seq_id[i]; ++s)
      record.batch.shared.emplace_back(uint32_t(i), batch.seq_id[i][s]);
  }
  return record;
}

void edit_record(const llama_batch_ext* batch, const std::function<void(BatchRecord& record)>& edit) {
  const std::lock_guard lock(mutex);
  edit(records[batch]);
}

void forget_record(const llama_batch_ext* batch) {
  const std::lock_guard lock(mutex);
  records.erase(batch);
}

BatchRecord recorded(const llama_batch_ext* batch) {
  const std::lock_guard lock(mutex);
  const auto found = records.find(batch);
  return found == records.end() ? BatchRecord() : found->second;
}

}  // namespace mikv::llama
