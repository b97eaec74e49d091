// LayerCache: input checks, staging, commit and erase. Attention is in layer/attend.cpp.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <new>
#include <string>
#include <tuple>

#include "attention/kernel_api.hpp"
#include "codec/expected_error.hpp"
#include "codec/fp16.hpp"
#include "layer/layer_impl.hpp"
#include "mikv/byte_size.hpp"

namespace mikv {
namespace {

// Of channels [first, dim) of K and of V.
attention::Geometry make_geometry(uint32_t dim_k, uint32_t dim_v, uint32_t group_k, uint32_t group_v,
                                  uint32_t first = 0) {
  return {attention::tile_pairs(dim_k, group_k, first), attention::tile_pairs(dim_v, group_v, first),
          (dim_k - first) / group_k};
}

Status check_cells(SegmentId segment, std::span<const Cell> cells, uint32_t max_cells) {
  if (segment >= kMaxSegments) return segment_out_of_range(segment);
  for (const Cell cell : cells) {
    if (cell >= max_cells)
      return Error{"cell " + std::to_string(cell) + " is out of range; use 0 to " + std::to_string(max_cells - 1)};
  }
  if (cells.size() < 2 || std::is_sorted(cells.begin(), cells.end(), std::less_equal<>()))
    return {};  // strictly rising
  std::vector<Cell> sorted(cells.begin(), cells.end());
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end())
    return Error{"cell " + std::to_string(*twice) + " is named twice in one put; name it once"};
  return {};
}

Error out_of_memory(size_t n_tokens, const MemoryAccount& account) {
  return Error{ErrorCode::out_of_memory, "out of memory storing " + std::to_string(n_tokens) +
                                             " tokens in the KV cache beside " + format_bytes(double(account.used())) +
                                             " in use; use fewer or shorter sequences"};
}

// Thread's share of n items.
std::pair<uint32_t, uint32_t> share(uint32_t n, uint32_t thread, uint32_t n_threads) {
  return {uint32_t(uint64_t{n} * thread / n_threads), uint32_t(uint64_t{n} * (thread + 1) / n_threads)};
}

template <typename Encode>
void write_part(tier::SegmentStore& segment, uint32_t n, const float* rows, size_t stride, uint32_t dim,
                uint32_t thread, uint32_t n_threads, codec::Axes codec::Transform::*axes, Encode encode) {
  std::array<float, codec::kMaxHeadDim> finite;
  const uint32_t n_heads = uint32_t(segment.heads().size());
  const auto [begin, end] = share(n_heads * n, thread, n_threads);
  for (uint32_t item = begin; item < end; ++item) {
    const uint32_t head = item / n, token = item % n;
    tier::HeadStore& store = segment.heads()[head];
    tier::Tier& staged = store.staged;
    const uint32_t slot = staged.size() - n + token;
    const float* row = rows + token * stride + size_t{head} * dim;
    for (uint32_t c = 0; c < dim; ++c) finite[c] = codec::finite_f16_range(row[c]);
    if (store.staged_in_bytes()) (store.staged_transform.*axes).to_tier({finite.data(), dim});
    encode(staged.block_of(slot), staged.layout(), tier::Tier::lane_of(slot), finite.data());
  }
}

}  // namespace

tier::SegmentStore& LayerCache::Impl::segment_for_put(SegmentId id) {
  if (id >= segments.size()) segments.resize(size_t{id} + 1);
  if (!segments[id]) {
    segments[id] = std::make_unique<tier::SegmentStore>(shape.n_kv_heads, layouts, spec, *account);
    segments[id]->recount();
  }
  return *segments[id];
}

void LayerCache::Impl::drop_if_empty(SegmentId id) {
  if (tier::SegmentStore* store = segment(id); store && store->n_live() == 0) segments[id].reset();
}

LayerCache::LayerCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LayerCache::~LayerCache() = default;

Result<std::unique_ptr<LayerCache>> LayerCache::create(const LayerShape& shape, const Spec& spec, uint32_t max_cells,
                                                       std::shared_ptr<MemoryAccount> account,
                                                       codec::KeyBalancers balancers) {
  for (const Status& status : {attention::target_error(), check_layer(shape, spec, balancers)}) {
    if (!status) return status.error();
  }
  auto impl = std::make_unique<Impl>();
  impl->account = account ? std::move(account) : std::make_shared<MemoryAccount>();
  impl->shape = shape;
  impl->spec = spec;
  impl->positions.max_cells = std::clamp(max_cells, 1u, kMaxCells);
  auto layouts = std::make_shared<tier::Layouts>(make_layouts(shape, spec, impl->positions));
  layouts->balancers = std::move(balancers);
  impl->layouts = std::move(layouts);
  const uint32_t dim_k = shape.head_dim_k, dim_v = shape.head_dim_v, n_outlier = n_outlier_channels(spec);
  impl->raw_geometry = make_geometry(dim_k, dim_v, dim_k, dim_v);
  std::tie(impl->tier_group_k, impl->tier_group_v) = tier_groups(shape, *impl->layouts);
  impl->tier_geometry = make_geometry(dim_k, dim_v, impl->tier_group_k, impl->tier_group_v, n_outlier);
  if (n_outlier) impl->outlier_geometry = make_geometry(n_outlier, n_outlier, n_outlier, n_outlier);
  return std::unique_ptr<LayerCache>(new LayerCache(std::move(impl)));
}

const LayerShape& LayerCache::shape() const { return impl_->shape; }
const Spec& LayerCache::spec() const { return impl_->spec; }
uint32_t LayerCache::max_cells() const { return impl_->positions.max_cells; }
const std::shared_ptr<MemoryAccount>& LayerCache::account() const { return impl_->account; }

Status LayerCache::set_rope(Rope rope) {
  if (2 * rope.angles.size() > impl_->shape.head_dim_k) {
    return Error{"RoPE of " + std::to_string(2 * rope.angles.size()) + " channels for keys of " +
                 std::to_string(impl_->shape.head_dim_k)};
  }
  for (const float angle : rope.angles) {
    if (!std::isfinite(angle)) return Error{"an angle of RoPE is not finite"};
  }
  impl_->positions.rope = std::move(rope);
  return {};
}

void LayerCache::record_from(uint32_t n_tokens) { impl_->positions.record_from = n_tokens; }

Status LayerCache::stage(SegmentId segment, std::span<const Cell> cells, std::span<const uint8_t> punctuation) {
  try {
    if (const Status status = check_cells(segment, cells, impl_->positions.max_cells); !status) return status;
    impl_->segment_for_put(segment).stage(cells, punctuation);
  } catch (const std::bad_alloc&) {
    erase(segment, cells);  // wherever it stopped
    return out_of_memory(cells.size(), *impl_->account);
  }
  return {};
}

Status LayerCache::continue_segment(SegmentId segment, SegmentId next) {
  if (const Status status = check_cells(next, {}, impl_->positions.max_cells); !status) return status;
  if (n_cells(next))
    return Error{"segment " + std::to_string(next) + " holds tokens; a segment continues in one that holds none"};
  if (!impl_->segment(segment)) return {};
  tier::CommitScratch scratch;
  try {
    std::vector<tier::HeadStore>& heads = impl_->segment_for_put(next).heads();
    tier::SegmentStore& from = *impl_->segment(segment);
    for (size_t h = 0; h < heads.size(); ++h) from.heads()[h].pass_on(heads[h], from.spec(), from.n_live(), scratch);
  } catch (const std::bad_alloc&) {
    return Error::out_of_memory(
        "out of memory beginning another segment of the KV cache; use fewer or shorter sequences");
  }
  return {};
}

void LayerCache::write_k(SegmentId segment, const float* k, size_t k_stride, uint32_t thread, uint32_t n_threads) {
  tier::SegmentStore* store = impl_->segment(segment);
  if (!store) return;  // stage() reported why
  write_part(*store, store->n_last_staged(), k, k_stride, impl_->shape.head_dim_k, thread, n_threads,
             &codec::Transform::key, codec::encode_k);
}

void LayerCache::write_v(SegmentId segment, const float* v, size_t v_stride, uint32_t thread, uint32_t n_threads) {
  tier::SegmentStore* store = impl_->segment(segment);
  if (!store) return;
  write_part(*store, store->n_last_staged(), v, v_stride, impl_->shape.head_dim_v, thread, n_threads,
             &codec::Transform::value, codec::encode_v);
}

Status LayerCache::put(SegmentId segment, std::span<const Cell> cells, const float* k, size_t k_stride, const float* v,
                       size_t v_stride) {
  const Status status = stage(segment, cells);
  if (!status) return status;
  write_k(segment, k, k_stride);
  write_v(segment, v, v_stride);
  return status;
}

Status LayerCache::Impl::lower(tier::SegmentStore& segment, const policy::Rung& rung) const {
  try {
    const Spec smaller = policy::lowered(segment.spec(), rung);
    segment.set_spec(smaller);  // first: what runs out of memory below resumes with the next call
    const codec::BlockLayout uniform = make_layouts(shape, smaller, positions).lo;
    tier::CommitScratch scratch;
    for (tier::HeadStore& head : segment.heads()) {
      // Bits first: what they free in the blocks of lo takes the tokens of hi, where there is no room for more blocks.
      const bool fewer = smaller.mixed() ? smaller.bits + head.more_bits < head.lo.layout().bits_per_element()
                                         : head.lo.layout().bits > uniform.bits;
      if (fewer) head.lower_bits(smaller, uniform);
      head.demote_surplus(smaller, segment.n_live(), scratch);
      if (fewer) head.lo.shrink();
    }
  } catch (const std::bad_alloc&) {
    return Error::out_of_memory("out of memory making the KV cache smaller");
  }
  return {};
}

Status LayerCache::lower(SegmentId segment, const policy::Rung& rung) {
  try {
    if (const Status status = check_cells(segment, {}, impl_->positions.max_cells); !status) return status;
    return impl_->lower(impl_->segment_for_put(segment), rung);
  } catch (const std::bad_alloc&) {
    return Error::out_of_memory("out of memory making the KV cache smaller");
  }
}

void LayerCache::trim(SegmentId segment) {
  if (tier::SegmentStore* store = impl_->segment(segment)) store->trim();
}

void LayerCache::stage_in_bytes(bool on) {
  impl_->stages_in_bytes = on;
  encode_staged();
}

void LayerCache::encode_staged() {
  const uint32_t from = impl_->bytes_from();
  for (const auto& segment : impl_->segments) {
    if (segment && segment->heads().front().staged.size() >= from) segment->stage_in_bytes();
  }
}

void LayerCache::erase(SegmentId segment, std::span<const Cell> cells) {
  tier::SegmentStore* store = impl_->segment(segment);
  if (!store || store->n_live() == 0) return;  // an empty one may be lowered for the tokens that come
  store->erase(cells);
  impl_->drop_if_empty(segment);
}

void LayerCache::erase_if(SegmentId segment, Cell first, Cell last) {
  if (tier::SegmentStore* store = impl_->segment(segment)) store->erase_range(first, last);
  impl_->drop_if_empty(segment);
}

void LayerCache::retain(SegmentId segment, std::span<const uint64_t> live) {
  if (tier::SegmentStore* store = impl_->segment(segment)) store->retain(live);
  impl_->drop_if_empty(segment);
}

void LayerCache::visit_keys(SegmentId segment, const VisitKeys& visit, uint32_t thread, uint32_t n_threads) {
  tier::SegmentStore* store = impl_->segment(segment);
  if (!store) return;
  const uint32_t dim = impl_->shape.head_dim_k;
  std::array<float, codec::kBlockTokens * codec::kMaxHeadDim> rows;
  std::array<Cell, codec::kBlockTokens> cells;
  const auto key = [&](uint32_t lane) { return std::span(rows).subspan(size_t{lane} * dim, dim); };
  for (uint32_t h = thread; h < impl_->shape.n_kv_heads; h += n_threads) {
    tier::HeadStore& head = store->heads()[h];
    for (tier::Tier* tier : {&head.staged, &head.hi, &head.lo}) {
      const codec::Axes& axes = head.transform_of(*tier).key;
      for (uint32_t slot = 0; slot < tier->size(); slot += codec::kBlockTokens) {
        uint8_t* block = tier->block_of(slot);
        const uint32_t n = std::min(codec::kBlockTokens, tier->size() - slot);
        for (uint32_t lane = 0; lane < n; ++lane) {
          cells[lane] = tier->cell(slot + lane);
          codec::decode_k(block, tier->layout(), lane, key(lane).data());
          axes.from_tier(key(lane));
        }
        const uint32_t changed = visit(std::span(cells).first(n), h, std::span(rows).first(size_t{n} * dim));
        if (changed && tier == &head.staged) head.rope_shifted = true;
        for (uint32_t lane = 0; lane < n; ++lane) {
          if (!(changed >> lane & 1) && !(changed && tier->layout().keys_by_channel)) continue;
          axes.to_tier(key(lane));
          if (!tier->layout().keys_by_channel) codec::encode_k(block, tier->layout(), lane, key(lane).data());
        }
        if (changed && tier->layout().keys_by_channel) codec::encode_keys(block, tier->layout(), n, rows.data());
      }
    }
  }
}

void LayerCache::read_f16(SegmentId segment, uint16_t* k, size_t k_stride, uint16_t* v, size_t v_stride) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  if (!store) return;
  std::array<uint16_t*, codec::kBlockTokens> k_rows, v_rows;
  std::array<float, codec::kMaxHeadDim> k_row, v_row;
  for (uint32_t h = 0; h < impl_->shape.n_kv_heads; ++h) {
    const tier::HeadStore& head = store->heads()[h];
    const tier::Tier& staged = head.staged;
    for (uint32_t slot = 0; slot < staged.size(); slot += codec::kBlockTokens) {
      const uint32_t n = std::min(codec::kBlockTokens, staged.size() - slot);
      for (uint32_t i = 0; i < n; ++i) {
        const size_t cell = staged.cell(slot + i);
        k_rows[i] = k + cell * k_stride + size_t{h} * impl_->shape.head_dim_k;
        v_rows[i] = v + cell * v_stride + size_t{h} * impl_->shape.head_dim_v;
      }
      if (head.staged_in_bytes()) {
        for (uint32_t i = 0; i < n; ++i) {
          codec::decode_token(staged.block_of(slot), staged.layout(), i, k_row.data(), v_row.data());
          head.staged_transform.key.from_tier({k_row.data(), impl_->shape.head_dim_k});
          std::transform(k_row.begin(), k_row.begin() + impl_->shape.head_dim_k, k_rows[i], codec::f32_to_f16);
          std::transform(v_row.begin(), v_row.begin() + impl_->shape.head_dim_v, v_rows[i], codec::f32_to_f16);
        }
        continue;
      }
      codec::read_f16(staged.block_of(slot), staged.layout(), n, k_rows.data(), v_rows.data());
    }
  }
}

void LayerCache::clear() { impl_->segments.clear(); }

uint64_t LayerCache::n_cells(SegmentId segment) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  return store ? store->n_live() : 0;
}

const Spec& LayerCache::spec_of(SegmentId segment) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  return store ? store->spec() : impl_->spec;
}

uint64_t LayerCache::bytes_of(SegmentId segment) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  return store ? store->charged_bytes() : 0;
}

uint64_t LayerCache::n_staged(SegmentId segment) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  return store && !impl_->spec.uncompressed() ? store->heads().front().staged.size() : 0;
}

Result<std::unique_ptr<LayerCache>> LayerCache::clone(const Spec& spec, std::shared_ptr<MemoryAccount> account,
                                                      codec::KeyBalancers balancers) const {
  for (const auto& segment : impl_->segments) {
    if (segment && (segment->compressed() || segment->staged_in_bytes())) {
      return Error{"a cache that was compressed already cannot start another spec; clone it before the first commit"};
    }
  }
  auto copy = create(impl_->shape, spec, impl_->positions.max_cells, std::move(account), std::move(balancers));
  if (!copy) return copy;
  if (!impl_->spec.can_start(spec)) {
    return Error{"a cache under '" + impl_->spec.preset + "' records too little to start '" + spec.preset +
                 "' from it; start from a spec with importance=" +
                 std::string(policy::policy_of(spec.importance).name) + " and outlier=balancer"};
  }
  Impl& to = *copy.value()->impl_;
  try {
    to.positions = impl_->positions;
    for (const auto& segment : impl_->segments) {
      to.segments.push_back(segment ? std::make_unique<tier::SegmentStore>(*segment, to.layouts, spec, *to.account)
                                    : nullptr);
    }
  } catch (const std::bad_alloc&) {
    return Error::out_of_memory("out of memory cloning a KV cache; use fewer specs or a shorter context");
  }
  return copy;
}

std::vector<StoredToken> LayerCache::dump(SegmentId segment, uint32_t kv_head) const {
  std::vector<StoredToken> tokens;
  const tier::SegmentStore* store = impl_->segment(segment);
  if (!store || kv_head >= impl_->shape.n_kv_heads) return tokens;
  const tier::HeadStore& head = store->heads()[kv_head];
  tier::CellSet stored;
  stored.reserve(store->live().end());
  const auto read = [&](const tier::Tier& tier, TokenTier name) {
    for (uint32_t slot = 0; slot < tier.size(); ++slot) {
      StoredToken token{tier.cell(slot),
                        name,
                        std::abs(tier.score(slot)),
                        std::vector<float>(impl_->shape.head_dim_k),
                        std::vector<float>(impl_->shape.head_dim_v),
                        {}};
      codec::decode_token(tier.block_of(slot), tier.layout(), tier::Tier::lane_of(slot), token.k.data(),
                          token.v.data());
      head.transform_of(tier).key.from_tier(token.k);
      head.transform_of(tier).value.from_tier(token.v);
      if (tier.layout().mixed()) {
        token.k_error.resize(impl_->shape.head_dim_k);
        codec::expected_key_errors(head.transform.key, tier.layout(), token.k_error.data());
      }
      if (token.cell < stored.end()) stored.insert(token.cell);
      tokens.push_back(std::move(token));
    }
  };
  read(head.staged, TokenTier::staged);
  read(head.hi, TokenTier::hi);
  read(head.lo, TokenTier::lo);
  for (uint32_t cell = 0; cell < store->live().end(); ++cell) {
    if (store->live().contains(cell) && !stored.contains(cell))
      tokens.push_back({cell, TokenTier::evicted, 0.0f, {}, {}, {}});
  }
  return tokens;
}

}  // namespace mikv
