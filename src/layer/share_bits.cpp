#include "layer/share_bits.hpp"

#include <algorithm>
#include <array>
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

// Segments that the next commit() freezes with bits of lo=mixed.
std::vector<tier::SegmentStore*> sharing(std::span<LayerCache* const> layers, SegmentId segment) {
  std::vector<tier::SegmentStore*> stores;
  for (LayerCache* layer : layers) {
    tier::SegmentStore* store = layer->impl().segment(segment);
    if (store && store->spec().mixed() && store->heads().front().freezes_next()) stores.push_back(store);
  }
  return stores;
}

// How much errors of each head count in what its layer puts out; zeros if no query was sampled.
std::vector<double> weights_of(const tier::SegmentStore& segment) {
  double output = 0.0;
  for (const tier::HeadStore& head : segment.heads()) output += head.weight->output;
  std::vector<double> weights;
  for (const tier::HeadStore& head : segment.heads())
    weights.push_back(output > 0.0 ? head.weight->error / output : 0.0);
  return weights;
}

Error out_of_memory() {
  return Error::out_of_memory("out of memory planning the bits of the KV cache; use fewer or shorter sequences");
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
  std::vector<uint32_t> shares;
};

}  // namespace

Result<uint64_t> weigh_heads(std::span<LayerCache* const> layers, SegmentId segment, uint64_t n_most,
                             uint32_t n_threads) {
  constexpr uint32_t kParts = tier::kWeightParts;
  struct Due {
    const tier::SegmentStore* store;
    tier::HeadStore* head;
    std::array<policy::ErrorWeight::Sums, kParts> parts;
    std::array<bool, kParts> failed{};
  };
  std::vector<Due> due;
  try {
    for (tier::SegmentStore* store : sharing(layers, segment)) {
      for (tier::HeadStore& head : store->heads()) {
        if (!head.weight && due.size() < n_most) due.push_back({store, &head, {}, {}});
      }
    }
    // A job of all parts computes once what they share; where threads outnumber heads, each part is a job.
    const uint32_t n_parts = due.size() < n_threads ? 1 : kParts;
    const size_t n_jobs = due.size() * kParts / n_parts;
    share_jobs(n_jobs, n_threads, [&](const auto& next) {
      tier::CommitScratch scratch;
      for (size_t i; (i = next()) < n_jobs;) {
        Due& of = due[i * n_parts / kParts];
        const uint32_t first = uint32_t(i * n_parts % kParts);
        const auto parts = std::span(of.parts).subspan(first, n_parts);
        try {
          of.head->weigh(of.store->spec(), of.store->n_live(), first, parts, scratch);
        } catch (const std::bad_alloc&) {
          of.failed[first] = true;
        }
      }
    });
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  bool done = true;
  for (const Due& of : due) {
    if (std::ranges::find(of.failed, true) != of.failed.end()) {
      done = false;
      continue;
    }
    policy::ErrorWeight::Sums all;
    for (const policy::ErrorWeight::Sums& part : of.parts) all.error += part.error, all.output += part.output;
    of.head->weight = all;
  }
  if (!done) return out_of_memory();
  return uint64_t{due.size()};
}

Status share_bits(std::span<LayerCache* const> layers, SegmentId segment, uint32_t n_threads) {
  if (const auto weighed = weigh_heads(layers, segment, UINT64_MAX, n_threads); !weighed) return weighed.error();
  try {
    std::map<Kind, Sharing> sharings;
    bool any_query = false;
    for (tier::SegmentStore* store : sharing(layers, segment)) {
      std::vector<tier::HeadStore>& heads = store->heads();
      const tier::Tier& staged = heads.front().staged;
      Sharing& of_kind = sharings[{staged.layout().dim_k, staged.layout().dim_v, store->layouts().lo.id_bytes,
                                   staged.size(), store->spec().bits}];
      for (tier::HeadStore& head : heads) of_kind.heads.push_back(&head);
      for (const double weight : weights_of(*store)) {
        of_kind.weights.push_back(weight);
        any_query |= weight > 0.0;
      }
    }
    for (auto& [kind, of_kind] : sharings) {
      const uint32_t n_tiles = codec::tiles_of(kind.dim_k) + codec::tiles_of(kind.dim_v);
      of_kind.shares = policy::share_bits(
          of_kind.weights, policy::total_tile_bits(kind.dim_k + kind.dim_v, kind.bits, kind.id_bytes), n_tiles);
    }
    // Nothing fails from here on.
    for (const auto& [kind, of_kind] : sharings) {
      for (size_t i = 0; i < of_kind.heads.size(); ++i) {
        tier::HeadStore& head = *of_kind.heads[i];
        head.weight.reset();
        if (any_query)
          head.more_bits = policy::bits_of_total(kind.dim_k + kind.dim_v, of_kind.shares[i], kind.id_bytes) - kind.bits;
      }
    }
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  return {};
}

}  // namespace mikv
