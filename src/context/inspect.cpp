#include "mikv/inspect.hpp"

#include <map>
#include <string>

#include "context/context_impl.hpp"

namespace mikv {

Result<std::vector<TokenState>> tokens_of(const Context& context, int layer, uint32_t kv_head, SequenceId sequence) {
  Context::Impl& of = impl_of(context);
  const context::ContextLayer* known = of.layers.find(layer);
  if (!known) return context::no_layer(layer);
  if (!of.keeps_cells()) return Error{ErrorCode::unsupported, "tokens: the engine keeps the positions"};
  if (!of.sequences.valid(sequence)) return context::no_sequence(sequence, of.sequences.n_sequences());
  if (kv_head >= known->cache->shape().n_kv_heads)
    return Error{"KV head " + std::to_string(kv_head) + " is out of range"};
  return context::guarded([&]() -> Result<std::vector<TokenState>> {
    std::map<Cell, StoredToken> stored;
    for (const SegmentId segment : of.sequences.seen_by(sequence)) {
      for (StoredToken& token : known->cache->dump(segment, kv_head)) stored[token.cell] = std::move(token);
    }
    std::vector<TokenState> tokens;
    for (const auto& [position, cell] : of.own_cells.cells_of(sequence)) {
      const auto found = stored.find(cell);
      if (found != stored.end()) tokens.push_back({position, found->second.tier, found->second.score});
    }
    return tokens;
  });
}

}  // namespace mikv
