#include "layer/segment_format.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "codec/fp16.hpp"
#include "codec/trellis.hpp"
#include "policy/bit_allocation.hpp"
#include "policy/policy.hpp"
#include "session/byte_stream.hpp"

namespace mikv::session {
namespace {

constexpr uint32_t kNotSaved = UINT32_MAX;
constexpr uint8_t kFrozen = 1, kSampled = 2, kGoesOn = 4, kStagedInBytes = 8, kShifted = 16, kPattern = 32,
                  kShared = 64, kWeighed = 128;

template <typename T>
void put_array(ByteWriter& out, const std::vector<T>& values) {
  out.put(uint32_t(values.size()));
  out.put_array(std::span<const T>(values));
}

template <typename T>
std::vector<T> get_array(ByteReader& in) {
  const uint32_t n = in.get<uint32_t>();
  return in.get_array<T>(n);
}

void put_axes(ByteWriter& out, const codec::Axes& axes) {
  put_array(out, axes.centre);
  put_array(out, axes.balancer);
  put_array(out, axes.order);
  put_array(out, axes.turns);
  out.put(uint8_t(axes.hadamard));
}

codec::Axes get_axes(ByteReader& in) {
  codec::Axes axes;
  axes.centre = get_array<uint16_t>(in);
  axes.balancer = get_array<uint16_t>(in);
  axes.order = get_array<uint16_t>(in);
  axes.turns = get_array<uint16_t>(in);
  axes.hadamard = in.get<uint8_t>() != 0;
  return axes;
}

void put_tiles(ByteWriter& out, const codec::TileTable& row, uint32_t n_tiles) {
  put_array(out, std::vector<uint8_t>(row.bits.begin(), row.bits.begin() + n_tiles));
  put_array(out, std::vector<float>(row.weight.begin(), row.weight.begin() + n_tiles));
}

void put_tier(ByteWriter& out, const tier::Tier& tier, std::span<const uint32_t> index_of) {
  MemoryAccount not_the_caches;  // working memory
  const auto index = [&](uint32_t slot) {
    return tier.cell(slot) < index_of.size() ? index_of[tier.cell(slot)] : kNotSaved;
  };
  std::vector<uint32_t> slots;
  for (uint32_t slot = 0; slot < tier.size(); ++slot) {
    if (index(slot) != kNotSaved) slots.push_back(slot);
  }
  tier::Tier chosen(tier, slots, not_the_caches);
  for (uint32_t to = 0; to < chosen.size(); ++to) chosen.set_cell(to, index(slots[to]));
  out.put(chosen.size());
  out.put_bytes(chosen.blocks(), size_t{chosen.n_blocks()} * tier.layout().bytes);
}

// ---------------------------------------------------------------- checks of what was read

bool finite_halves(const std::vector<uint16_t>& halves) {
  return std::all_of(halves.begin(), halves.end(), [](uint16_t h) { return std::isfinite(codec::f16_to_f32(h)); });
}

bool is_permutation(std::vector<uint16_t> order) {
  std::sort(order.begin(), order.end());
  for (size_t i = 0; i < order.size(); ++i) {
    if (order[i] != i) return false;
  }
  return true;
}

bool good_axes(const codec::Axes& axes, uint32_t dim) {
  const auto empty_or_dim = [dim](const auto& values) { return values.empty() || values.size() == dim; };
  if (!empty_or_dim(axes.centre) || !empty_or_dim(axes.balancer) || !empty_or_dim(axes.order)) return false;
  if (!finite_halves(axes.centre) || !finite_halves(axes.balancer) || !is_permutation(axes.order)) return false;
  const bool positive =
      std::all_of(axes.balancer.begin(), axes.balancer.end(), [](uint16_t h) { return codec::f16_to_f32(h) > 0.0f; });
  const bool powers =
      std::all_of(axes.turns.begin(), axes.turns.end(), [](uint16_t n) { return std::has_single_bit(n); });
  return positive && powers && (axes.turns.empty() || std::accumulate(axes.turns.begin(), axes.turns.end(), 0u) == dim);
}

bool finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x) && x >= 0.0f; });
}

struct Tiles {
  std::vector<uint8_t> bits;
  std::vector<float> weights;

  static Tiles read(ByteReader& in) {
    Tiles tiles;
    tiles.bits = get_array<uint8_t>(in);
    tiles.weights = get_array<float>(in);
    return tiles;
  }
  bool good(uint32_t n) const {
    return bits.size() == n && weights.size() == n &&
           std::all_of(bits.begin(), bits.end(), [](uint8_t b) { return codec::is_tile_bits(b); }) &&
           std::all_of(weights.begin(), weights.end(), [](float w) { return std::isfinite(w) && w > 0.0f; });
  }
};

// False if the tier is not one; its cells are taken out of `missing`.
bool get_tier(ByteReader& in, tier::Tier& tier, tier::CellSet& missing) {
  const uint32_t n = in.get<uint32_t>();
  const uint64_t bytes = codec::blocks_of(n) * tier.layout().bytes;
  const uint8_t* blocks = in.take(bytes);
  if (!blocks) return false;
  if (n == 0) return true;
  tier.reserve(n);
  tier.append(n);
  std::copy_n(blocks, bytes, tier.block_of(0));
  for (uint32_t slot = 0; slot < n; ++slot) {
    if (!missing.contains(tier.cell(slot))) return false;
    missing.remove(tier.cell(slot));
    const float score = tier.score(slot);
    if (!std::isfinite(score)) return false;
    // Those of a block are of all its tokens: one that is no number would spoil the others when they are encoded anew.
    const bool first = tier::Tier::lane_of(slot) == 0 && tier.layout().keys_by_channel;
    if (first && !codec::has_finite_key_scales(tier.block_of(slot), tier.layout())) return false;
  }
  tier.clear_unused();  // whatever the bytes said
  return true;
}

// None in a head that is frozen or has no use for them, and in a short segment, which records none yet.
bool get_queries(ByteReader& in, const SegmentContract& contract, bool sampled, tier::HeadStore& head) {
  const uint32_t dim = contract.shape.head_dim_k;
  const bool records = contract.spec.balancer && !head.frozen;
  auto queries = records ? tier::QueryStatistics(contract.layouts->group, dim) : tier::QueryStatistics();
  queries.n = in.get<uint64_t>();
  queries.largest = get_array<float>(in);
  queries.square = get_array<uint64_t>(in);
  if (sampled) {
    tier::QuerySample sample;
    sample.arrivals = get_array<uint32_t>(in);
    sample.queries = get_array<uint16_t>(in);
    if (sample.arrivals.size() == tier::QuerySample::kEach) sample.add_late_places();
    if (sample.arrivals.size() != queries.sample.arrivals.size() ||
        sample.queries.size() != queries.sample.queries.size() || !finite_halves(sample.queries))
      return false;
    queries.sample = std::move(sample);
  }
  const size_t n_channels = records && !queries.empty() ? dim : 0;
  if (!in.ok() || queries.largest.size() != n_channels || queries.square.size() != n_channels ||
      !finite(queries.largest))
    return false;
  head.queries = n_channels ? std::move(queries) : tier::QueryStatistics();
  return true;
}

bool get_head(ByteReader& in, const SegmentContract& contract, tier::CellSet missing, tier::HeadStore& head) {
  const LayerShape& shape = contract.shape;
  const uint8_t flags = in.get<uint8_t>();
  head.frozen = flags & kFrozen;
  head.rope_shifted = flags & kShifted;
  if (flags & kGoesOn) head.n_before = in.get<uint32_t>();
  if (flags & kPattern) {
    head.pattern = in.get<uint8_t>();
    if (head.pattern == 0 || head.pattern > policy::policy_of(contract.spec.importance).patterns.n) return false;
  }
  if (flags & kShared) {
    head.more_bits = in.get<double>();
    if (head.frozen || !(std::abs(head.more_bits) <= policy::kMostMoreBits)) return false;
  }
  if (flags & kWeighed) {
    const policy::ErrorWeight::Sums weight{in.get<double>(), in.get<double>()};
    const auto good = [](double sum) { return sum >= 0.0 && std::isfinite(sum); };
    if (head.frozen || !good(weight.error) || !good(weight.output)) return false;
    head.weight = weight;
  }
  if (flags & kStagedInBytes) {
    if (!contract.layouts->quantised()) return false;
    head.staged_transform.key = get_axes(in);
    if (!good_axes(head.staged_transform.key, shape.head_dim_k)) return false;
    head.staged = tier::Tier(contract.layouts->staged_bytes, contract.account);
  }
  if (!get_queries(in, contract, flags & kSampled, head)) return false;
  head.transform.key = get_axes(in);
  head.transform.value = get_axes(in);
  const Tiles k = Tiles::read(in), v = Tiles::read(in);
  if (!in.ok() || !good_axes(head.transform.key, shape.head_dim_k) ||
      !good_axes(head.transform.value, shape.head_dim_v))
    return false;
  const bool mixed = contract.spec.mixed() && head.frozen;
  if (head.frozen && !contract.spec.needs_calibration()) return false;
  if (mixed) {
    if (!k.good(codec::tiles_of(shape.head_dim_k)) || !v.good(codec::tiles_of(shape.head_dim_v))) return false;
    head.set_lo_layout(codec::BlockLayout::make_mixed(shape.head_dim_k, shape.head_dim_v, {k.bits, k.weights},
                                                      {v.bits, v.weights}, contract.layouts->lo.id_bytes));
    head.more_bits = std::clamp(head.lo.layout().bits_per_element() - contract.spec.bits, -policy::kMostMoreBits,
                                policy::kMostMoreBits);
  } else if (!k.bits.empty() || !v.bits.empty() || !k.weights.empty() || !v.weights.empty()) {
    return false;
  }
  if (!get_tier(in, head.staged, missing) || !get_tier(in, head.hi, missing) || !get_tier(in, head.lo, missing))
    return false;
  // Compressed tokens need the segment that they were compressed in.
  if (contract.spec.needs_calibration() && !head.frozen && (head.hi.size() || head.lo.size())) return false;
  const auto left = missing.words();
  return contract.layouts->evict || std::all_of(left.begin(), left.end(), [](uint64_t word) { return word == 0; });
}

}  // namespace

void save_segment(const tier::SegmentStore& segment, std::span<const uint32_t> cells, std::vector<uint8_t>& to) {
  std::vector<uint32_t> index_of(segment.live().end(), kNotSaved);
  std::vector<uint64_t> live((cells.size() + 63) / 64);
  for (uint32_t i = 0; i < cells.size(); ++i) {
    if (!segment.live().contains(cells[i])) continue;
    index_of[cells[i]] = i;
    live[i / 64] |= uint64_t{1} << (i % 64);
  }
  ByteWriter out(to);
  out.put(segment.next_arrival());
  out.put_array(std::span<const uint64_t>(live));
  for (const tier::HeadStore& head : segment.heads()) {
    const bool sampled = !head.queries.sample.arrivals.empty();
    const bool shared = !head.frozen && head.more_bits != 0.0, weighed = !head.frozen && head.weight;
    out.put(uint8_t((head.frozen ? kFrozen : 0) | (sampled ? kSampled : 0) | (head.n_before ? kGoesOn : 0) |
                    (head.staged_in_bytes() ? kStagedInBytes : 0) | (head.rope_shifted ? kShifted : 0) |
                    (head.pattern ? kPattern : 0) | (shared ? kShared : 0) | (weighed ? kWeighed : 0)));
    if (head.n_before) out.put(head.n_before);
    if (head.pattern) out.put(head.pattern);
    if (shared) out.put(head.more_bits);
    if (weighed) {
      out.put(head.weight->error);
      out.put(head.weight->output);
    }
    if (head.staged_in_bytes()) put_axes(out, head.staged_transform.key);
    out.put(head.queries.n);
    put_array(out, head.queries.largest);
    put_array(out, head.queries.square);
    if (sampled) {
      put_array(out, head.queries.sample.arrivals);
      put_array(out, head.queries.sample.queries);
    }
    put_axes(out, head.transform.key);
    put_axes(out, head.transform.value);
    const codec::BlockLayout& lo = head.lo.layout();
    const bool mixed = head.frozen && lo.mixed();
    put_tiles(out, lo.row_k, mixed ? lo.tiles_k : 0);
    put_tiles(out, lo.row_v, mixed ? lo.tiles_v : 0);
    for (const tier::Tier* tier : {&head.staged, &head.hi, &head.lo}) put_tier(out, *tier, index_of);
  }
}

Result<std::unique_ptr<tier::SegmentStore>> load_segment(std::span<const uint8_t> bytes, uint32_t n_cells,
                                                         const SegmentContract& contract) {
  const Error bad{ErrorCode::damaged_data, "a segment of the saved cache is damaged"};
  ByteReader in(bytes);
  const uint32_t next_arrival = in.get<uint32_t>();
  const auto words = in.get_array<uint64_t>((uint64_t{n_cells} + 63) / 64);
  if (!in.ok()) return bad;
  if (n_cells % 64 && words.back() >> (n_cells % 64)) return bad;
  auto segment = std::make_unique<tier::SegmentStore>(contract.shape.n_kv_heads, contract.layouts, contract.spec,
                                                      contract.account);
  const tier::CellSet live(words);
  for (tier::HeadStore& head : segment->heads()) {
    if (!get_head(in, contract, live, head)) return bad;
  }
  if (in.left() != 0) return bad;
  segment->set_loaded(live, next_arrival);
  return segment;
}

}  // namespace mikv::session
