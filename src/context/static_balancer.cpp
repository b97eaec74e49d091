#include "mikv/static_balancer.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <string_view>

#include "codec/fp16.hpp"
#include "context/balancer_file.hpp"
#include "context/context_impl.hpp"
#include "layer/layer_impl.hpp"
#include "mikv/atomic_file.hpp"

namespace mikv {
namespace {

constexpr std::string_view kTitle = "mikv balancers 1";
constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;
constexpr int kMaxLayers = 1 << 16;
constexpr size_t kMaxKvHeads = 256;

void take_largest(std::vector<float>& largest, std::span<const float> values) {
  largest.resize(values.size());
  for (size_t c = 0; c < values.size(); ++c) largest[c] = std::max(largest[c], std::abs(values[c]));
}

Status add_layer(const LayerCache& cache, const std::vector<SegmentId>& segments, std::vector<HeadMaxima>& heads) {
  const LayerShape& shape = cache.shape();
  heads.resize(heads.empty() ? shape.n_kv_heads : heads.size());
  if (heads.size() != shape.n_kv_heads || (!heads[0].k.empty() && heads[0].k.size() != shape.head_dim_k))
    return Error{ErrorCode::mismatch, "the maxima are of another model"};
  const LayerCache::Impl& impl = const_cast<LayerCache&>(cache).impl();
  for (const SegmentId id : segments) {
    const tier::SegmentStore* segment = impl.segment(id);
    if (!segment) continue;
    for (uint32_t h = 0; h < shape.n_kv_heads; ++h) {
      const tier::HeadStore& head = segment->heads()[h];
      if (head.queries.empty() || head.queries.n == 0)
        return Error{
            "no queries were recorded: balancers need a spec with outlier=balancer, whose text of 256 tokens or "
            "more is not compressed yet"};
      take_largest(heads[h].q, head.queries.largest);
      for (const StoredToken& token : cache.dump(id, h)) take_largest(heads[h].k, token.k);
    }
  }
  return {};
}

/// The numbers of a line, or nothing where it has something else.
class Line {
 public:
  explicit Line(std::string_view text) : at_(text.data()), end_(text.data() + text.size()) {}
  bool done() const { return at_ == end_; }

  template <typename N>
  std::optional<N> next() {
    while (at_ != end_ && *at_ == ' ') ++at_;
    N value{};
    const auto [stop, failure] = std::from_chars(at_, end_, value);
    if (failure != std::errc{}) return std::nullopt;
    at_ = stop;
    return value;
  }

 private:
  const char* at_;
  const char* end_;
};

/// Adds the factors of a head to its layer. False if the line is none of a head that may come next.
bool read_head(std::string_view text, StaticBalancers& balancers) {
  Line line(text);
  const auto layer = line.next<int>();
  const auto head = line.next<uint32_t>();
  if (!layer || !head || *layer < 0 || *layer >= kMaxLayers || *head >= kMaxKvHeads) return false;
  auto& heads = balancers[*layer];
  if (*head != heads.size()) return false;
  std::vector<float>& factors = heads.emplace_back();
  while (!line.done()) {
    const auto factor = line.next<float>();
    if (!factor || !std::isfinite(*factor) || !(*factor > 0.0f) || factors.size() == codec::kMaxHeadDim) return false;
    factors.push_back(*factor);
  }
  return !factors.empty() && factors.size() == heads.front().size();
}

}  // namespace

Status add_maxima(const Context& context, ChannelMaxima& maxima) {
  Context::Impl& of = impl_of(context);
  return context::guarded([&]() -> Status {
    std::vector<SegmentId> segments;
    of.sequences.for_each_segment([&](SegmentId segment) { segments.push_back(segment); });
    for (const auto& [index, layer] : of.layers.layers) {
      if (const Status added = add_layer(*layer.cache, segments, maxima[index]); !added) return added;
    }
    return {};
  });
}

StaticBalancers balancers_of(const ChannelMaxima& maxima) {
  StaticBalancers balancers;
  for (const auto& [layer, heads] : maxima) {
    for (const HeadMaxima& head : heads) {
      std::vector<float>& factors = balancers[layer].emplace_back();
      for (size_t c = 0; c < std::min(head.q.size(), head.k.size()); ++c)
        factors.push_back(codec::f16_to_f32(codec::balance(head.q[c], head.k[c])));
    }
  }
  return balancers;
}

Status write_static_balancers(const std::string& path, const StaticBalancers& balancers) {
  std::string text = std::string(kTitle) + "\n# layer, KV head, a factor for each channel of its keys\n";
  for (const auto& [layer, heads] : balancers) {
    for (size_t h = 0; h < heads.size(); ++h) {
      text += std::to_string(layer) + " " + std::to_string(h);
      for (const float factor : heads[h]) {
        std::array<char, 32> digits;
        text += ' ';
        text.append(digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), factor).ptr);
      }
      text += '\n';
    }
  }
  return write_file(path, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

Result<StaticBalancers> read_static_balancers(const std::string& path) {
  const auto bytes = read_file(path, kMaxFileBytes);
  if (!bytes) return Error{bytes.error().code, bytes.message() + context::kHowToGetBalancers};
  const auto damaged = [&](size_t line, const char* what) {
    return Error{ErrorCode::damaged_data,
                 path + ":" + std::to_string(line) + ": " + what + context::kHowToGetBalancers};
  };
  StaticBalancers balancers;
  std::string_view rest(reinterpret_cast<const char*>(bytes.value().data()), bytes.value().size());
  const Status read = context::guarded([&]() -> Status {
    for (size_t number = 1; !rest.empty(); ++number) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
      if (number == 1 && line != kTitle) return damaged(number, "no file of balancers");
      if (number == 1 || line.empty() || line.front() == '#') continue;
      if (!read_head(line, balancers)) return damaged(number, "no layer, KV head and factors of its channels");
    }
    return {};
  });
  if (!read) return read.error();
  if (balancers.empty()) return damaged(1, "no balancers");
  return balancers;
}

}  // namespace mikv
