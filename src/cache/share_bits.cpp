// LayerCache::share_bits: bits of the lo tier for heads whose errors count.
#include <algorithm>
#include <atomic>
#include <map>
#include <new>
#include <thread>
#include <tuple>

#include "cache/layer_impl.hpp"
#include "policy/bit_allocation.hpp"
#include "policy/mixed_frame.hpp"

namespace mikv {
namespace {

using Weights = std::vector<double>;

// How much errors of each head count in what the layer puts out; zeros if no query was sampled, empty if the next commit freezes nothing.
Weights weights_of(const LayerCache::Impl& layer, const cache::FrameStore& frame) {
  if (!frame.heads().front().freezes_next()) return {};
  cache::CommitScratch scratch;
  Weights weights;
  double output = 0.0;
  for (const cache::HeadStore& head : frame.heads()) {
    const policy::ErrorWeight::Sums sums = head.error_weight(layer.spec, frame.n_live(), scratch);
    weights.push_back(sums.error);
    output += sums.output;
  }
  for (double& weight : weights) weight = output > 0.0 ? weight / output : 0.0;
  return weights;
}

// Heads that can give each other bits, as a bit costs each of them the same memory.
using Kind = std::tuple<uint32_t, uint32_t, uint32_t, uint32_t>;
struct Sharing {
  std::vector<cache::HeadStore*> heads;
  Weights weights;
};

}  // namespace

Status LayerCache::share_bits(std::span<LayerCache* const> layers, FrameId frame, uint32_t n_threads) {
  try {
    std::vector<Weights> weights(layers.size());
    std::atomic<size_t> next{0};
    std::atomic<bool> failed{false};
    const auto run = [&] {
      for (size_t i; (i = next.fetch_add(1)) < layers.size();) {
        const Impl& layer = *layers[i]->impl_;
        const cache::FrameStore* store = layer.frame(frame);
        if (!store || !layer.spec.mixed()) continue;
        try {
          weights[i] = weights_of(layer, *store);
        } catch (const std::bad_alloc&) {
          failed = true;
        }
      }
    };
    {
      std::vector<std::jthread> helpers;
      for (uint32_t t = 1; t < n_threads && t < layers.size(); ++t) helpers.emplace_back(run);
      run();
    }
    if (failed) throw std::bad_alloc();

    std::map<Kind, Sharing> sharings;
    for (size_t i = 0; i < layers.size(); ++i) {
      if (weights[i].empty()) continue;
      const Impl& layer = *layers[i]->impl_;
      auto& heads = layer.frame(frame)->heads();
      const Kind kind{layer.shape.head_dim_k, layer.shape.head_dim_v, layer.layouts.lo.id_bytes, heads.front().staged.size()};
      Sharing& sharing = sharings[kind];
      for (size_t h = 0; h < heads.size(); ++h) {
        sharing.heads.push_back(&heads[h]);
        sharing.weights.push_back(weights[i][h]);
      }
    }
    for (const auto& [kind, sharing] : sharings) {
      const codec::BlockLayout& layout = sharing.heads.front()->staged.layout();
      const uint32_t id_bytes = std::get<2>(kind), n_channels = layout.dim_k + layout.dim_v;
      const double bits = layers.front()->impl_->spec.bits;
      const auto shares = policy::share_bits(sharing.weights, policy::total_tile_bits(n_channels, bits, id_bytes), layout.tiles_k + layout.tiles_v);
      for (size_t i = 0; i < shares.size(); ++i) {
        sharing.heads[i]->more_bits = policy::bits_of_total(n_channels, shares[i], id_bytes) - bits;
      }
    }
  } catch (const std::bad_alloc&) {
    return Error{"out of memory planning the bits of the KV cache; use fewer or shorter contexts"};
  }
  return {};
}

}  // namespace mikv
