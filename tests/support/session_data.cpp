#include "session_data.hpp"

#include <algorithm>

#include "test_attention.hpp"

namespace mikv::test {
namespace {

// Every channel has a mean and a size of its own; 1009 and 29 are primes, so that rows look alike nowhere.
float element(uint32_t token, uint32_t row, uint32_t channel) {
  const uint32_t mixed = (token * 613 + row * 271 + channel * 97 + token * channel * 31) % 1009;
  return (float(mixed % 29) - 14.0f) / (channel % 4 ? 16.0f : 4.0f) + float(channel % 3);
}

void put_tokens(LayerCache& layer, SegmentId segment, uint32_t first, uint32_t n) {
  Random unused(0);
  Tokens tokens(kSessionShape, n, unused);
  for (uint32_t t = 0; t < n; ++t) {
    for (uint32_t head = 0; head < kSessionShape.n_kv_heads; ++head) {
      std::ranges::copy(session_row(first + t, head, true), tokens.key(t, head));
      std::ranges::copy(session_row(first + t, head, false), tokens.value(t, head));
    }
  }
  put(layer, segment, cell_range(first, n), tokens);
}

void attend_to(LayerCache& layer, SegmentId segment) {
  Random unused(0);
  Request request(kSessionShape, 20, unused);
  for (size_t i = 0; i < request.q.size(); ++i) request.q[i] = element(uint32_t(i / 128), 9, uint32_t(i % 128));
  request.record = true;
  request.segments = {segment};
  run(layer, request);
}

}  // namespace

std::unique_ptr<LayerCache> make_session_layer() { return make_layer(kSessionShape, kSessionSpec); }

std::vector<float> session_row(uint32_t token, uint32_t kv_head, bool key) {
  std::vector<float> row(key ? kSessionShape.head_dim_k : kSessionShape.head_dim_v);
  for (uint32_t c = 0; c < row.size(); ++c) row[c] = element(token, 2 * kv_head + key, c);
  return row;
}

std::vector<session::Section> make_session_data() {
  constexpr uint32_t kPrompt = kSessionTokens - kSessionStaged;
  const auto layer = make_session_layer();
  std::vector<session::Section> sections;
  for (uint32_t part = 0; part < kSessionParts; ++part) {
    const SegmentId segment = part;
    const bool compressed = part >= uint32_t(SessionPart::compressed);
    if (SessionPart(part) == SessionPart::continued) {
      const Status status = layer->continue_segment(SegmentId(SessionPart::compressed), segment);
      if (!status) throw std::runtime_error(status.message());
    }
    put_tokens(*layer, segment, 0, kPrompt);
    attend_to(*layer, segment);
    if (SessionPart(part) == SessionPart::in_bytes) layer->stage_in_bytes(true);
    if (compressed) commit(*layer, segment);
    put_tokens(*layer, segment, kPrompt, kSessionStaged);
    layer->stage_in_bytes(false);
    session::Section& section = sections.emplace_back(session::Section{part, 0, 0, {}});
    const Status saved = layer->save_segment(segment, cell_range(0, kSessionTokens), section.data);
    if (!saved) throw std::runtime_error(saved.message());
    if (!compressed) layer->erase_if(segment, 0, kSessionTokens);
    // A segment that is continued holds nothing that is staged.
    if (SessionPart(part) == SessionPart::compressed) commit(*layer, segment);
  }
  return sections;
}

}  // namespace mikv::test
