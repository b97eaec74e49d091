// LayerCache::share_bits: bits of the lo tier for heads whose errors count.
#include <algorithm>
#include <atomic>
#include <compare>
#include <map>
#include <new>
#include <vector>

#include "layer/layer_impl.hpp"
#include "layer/share_jobs.hpp"
#include "policy/bit_allocation.hpp"
#include "policy/mixed_calibration.hpp"

namespace mikv {
namespace {

// A layer whose segment the next commit freezes, and how much errors of each head count in what it puts out; zeros if
// no query was sampled.
struct Candidate {
  const LayerCache::Impl& layer;
  tier::SegmentStore& segment;
  std::vector<double> weights;
};

void weigh(Candidate& candidate) {
  tier::CommitScratch scratch;
  double output = 0.0;
  for (const tier::HeadStore& head : candidate.segment.heads()) {
    const policy::ErrorWeight::Sums sums =
        head.error_weight(candidate.segment.spec(), candidate.segment.n_live(), scratch);
    candidate.weights.push_back(sums.error);
    output += sums.output;
  }
  for (double& weight : candidate.weights) weight = output > 0.0 ? weight / output : 0.0;
}

// What heads have in common that can give each other bits, as a bit costs each of them the same memory.
struct Kind {
  uint32_t dim_k, dim_v, id_bytes, n_tokens;
  double bits;  // of the spec
  auto operator<=>(const Kind&) const = default;
};
struct Sharing {
  std::vector<tier::HeadStore*> heads;
  std::vector<double> weights;
};

}  // namespace

Status LayerCache::share_bits(std::span<LayerCache* const> layers, SegmentId segment, uint32_t n_threads) {
  try {
    std::vector<Candidate> candidates;
    for (const LayerCache* layer : layers) {
      tier::SegmentStore* store = layer->impl_->segment(segment);
      if (store && store->spec().mixed() && store->heads().front().freezes_next())
        candidates.push_back({*layer->impl_, *store, {}});
    }
    std::atomic<bool> failed{false};
    share_jobs(candidates.size(), n_threads, [&](const auto& next) {
      for (size_t i; (i = next()) < candidates.size();) {
        try {
          weigh(candidates[i]);
        } catch (const std::bad_alloc&) {
          failed = true;
        }
      }
    });
    if (failed) throw std::bad_alloc();
    const auto any_query = [](const Candidate& candidate) {
      return std::ranges::any_of(candidate.weights, [](double weight) { return weight > 0.0; });
    };
    if (std::ranges::none_of(candidates, any_query)) return {};

    std::map<Kind, Sharing> sharings;
    for (const Candidate& candidate : candidates) {
      const LayerShape& shape = candidate.layer.shape;
      std::vector<tier::HeadStore>& heads = candidate.segment.heads();
      Sharing& sharing = sharings[{shape.head_dim_k, shape.head_dim_v, candidate.layer.layouts->lo.id_bytes,
                                   heads.front().staged.size(), candidate.segment.spec().bits}];
      for (tier::HeadStore& head : heads) sharing.heads.push_back(&head);
      sharing.weights.insert(sharing.weights.end(), candidate.weights.begin(), candidate.weights.end());
    }
    for (const auto& [kind, sharing] : sharings) {
      const uint32_t n_channels = kind.dim_k + kind.dim_v,
                     n_tiles = codec::tiles_of(kind.dim_k) + codec::tiles_of(kind.dim_v);
      const auto shares =
          policy::share_bits(sharing.weights, policy::total_tile_bits(n_channels, kind.bits, kind.id_bytes), n_tiles);
      for (size_t i = 0; i < shares.size(); ++i) {
        sharing.heads[i]->more_bits = policy::bits_of_total(n_channels, shares[i], kind.id_bytes) - kind.bits;
      }
    }
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::out_of_memory,
                 "out of memory planning the bits of the KV cache; use fewer or shorter contexts"};
  }
  return {};
}

Status LayerCache::share_bits(SegmentId segment) {
  LayerCache* const self = this;
  return share_bits(std::span(&self, 1), segment);
}

}  // namespace mikv
