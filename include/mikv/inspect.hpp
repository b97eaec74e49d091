// What a context holds of each token: for pictures and tests.
#pragma once

#include <cstdint>
#include <vector>

#include "mikv/context.hpp"

namespace mikv {

/// One stored token of one KV head.
struct TokenState {
  Position position = 0;
  TokenTier tier = TokenTier::staged;
  float score = 0.0f;  ///< importance: the attention that it received, where the policy records it and keeps it in hi
};

/// The tokens of a sequence in a KV head of a layer, by position. Slow. Errors: no such layer, head or sequence;
/// unsupported where the engine keeps the cells.
MIKV_API Result<std::vector<TokenState>> tokens_of(const Context& context, int layer, uint32_t kv_head,
                                                   SequenceId sequence);

}  // namespace mikv
