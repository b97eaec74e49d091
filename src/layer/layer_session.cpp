// LayerCache: saving, loading and copying segments.
#include <new>

#include "layer/layer_impl.hpp"
#include "layer/segment_format.hpp"

namespace mikv {

struct LoadedSegment::Impl {
  MemoryAccount account;  // until the segment is adopted: what is verified takes nobody's budget
  std::unique_ptr<tier::SegmentStore> store;
  const LayerCache::Impl* owner = nullptr;  // whose positions the store borrows
  uint32_t n_cells = 0;
};

LoadedSegment::LoadedSegment(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LoadedSegment::LoadedSegment(LoadedSegment&&) noexcept = default;
LoadedSegment& LoadedSegment::operator=(LoadedSegment&&) noexcept = default;
LoadedSegment::~LoadedSegment() = default;

uint64_t LoadedSegment::bytes() const { return impl_->account.used(); }

Status LoadedSegment::lower(const policy::Rung& rung) { return impl_->owner->lower(*impl_->store, rung); }

int64_t LoadedSegment::freed_by(const policy::Rung& rung) const {
  return impl_->owner->freed_by(*impl_->store, rung, false);
}

namespace {

// True if segments that were saved under `saved` can be in a layer under `here`, as far as specs tell; only then has
// the layer's shape layouts for `saved`.
bool same_kind(const Spec& here, const Spec& saved) {
  const auto demotes = [](const Spec& spec) { return policy::policy_of(spec.importance).demotes(); };
  return here.uncompressed() == saved.uncompressed() && here.mixed() == saved.mixed() &&
         here.hadamard == saved.hadamard && here.outlier_channels == saved.outlier_channels &&
         here.keys_by_channel == saved.keys_by_channel && demotes(here) == demotes(saved);
}

// True if a layer can attend to segments of other layouts: kernels take the coordinates and groups of a layer's tiers
// to be alike.
bool can_hold(const LayerCache::Impl& layer, const tier::Layouts& layouts) {
  return layer.layouts->evict == layouts.evict && layer.layouts->quantised() == layouts.quantised() &&
         tier_groups(layer.shape, *layer.layouts) == tier_groups(layer.shape, layouts);
}

Error no_memory() {
  return Error::out_of_memory("out of memory copying a part of the KV cache; use fewer or shorter sequences");
}

}  // namespace

Status LayerCache::save_segment(SegmentId segment, std::span<const Cell> cells, std::vector<uint8_t>& to) const {
  const tier::SegmentStore* store = impl_->segment(segment);
  if (!store) return Error{"segment " + std::to_string(segment) + " holds nothing to save"};
  try {
    session::save_segment(*store, cells, to);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
  return {};
}

Result<LoadedSegment> LayerCache::load_segment(std::span<const uint8_t> bytes, uint32_t n_cells,
                                               const Spec& saved) const {
  if (n_cells > impl_->positions.max_cells) {
    return Error{ErrorCode::mismatch, "of a context with more cells than this one has; take a larger one"};
  }
  try {
    const Spec& here = impl_->spec;
    const auto mismatch = [&] {
      return Error{ErrorCode::mismatch,
                   "of another kind of cache (--kv " + saved.to_string() + ", here --kv " + here.to_string() + ")"};
    };
    if (!same_kind(here, saved)) return mismatch();
    std::shared_ptr<const tier::Layouts> layouts = impl_->layouts;
    if (saved.hi != here.hi || saved.lo != here.lo || saved.group != here.group || saved.quantiser != here.quantiser) {
      layouts = std::make_shared<tier::Layouts>(make_layouts(impl_->shape, saved, impl_->positions));
    }
    if (!can_hold(*impl_, *layouts)) return mismatch();
    auto impl = std::make_unique<LoadedSegment::Impl>();
    auto store = session::load_segment(bytes, n_cells, {impl_->shape, saved, std::move(layouts), impl->account});
    if (!store) return store.error();
    impl->store = std::move(store).value();
    impl->owner = impl_.get();
    impl->n_cells = n_cells;
    return LoadedSegment(std::move(impl));
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

Result<LoadedSegment> LayerCache::load_segment(std::span<const uint8_t> bytes, uint32_t n_cells) const {
  return load_segment(bytes, n_cells, spec());
}

Status LayerCache::adopt_segment(SegmentId segment, LoadedSegment loaded, std::span<const Cell> cells) {
  if (segment >= kMaxSegments) return segment_out_of_range(segment);
  if (loaded.impl_->owner != impl_.get())
    return Error{"a segment that another cache has loaded; load it into this one"};
  if (cells.size() != loaded.impl_->n_cells) return Error{"a loaded segment needs as many cells as it was saved with"};
  for (const Cell cell : cells) {
    if (cell >= impl_->positions.max_cells) return Error{"cell " + std::to_string(cell) + " is out of range"};
  }
  try {
    loaded.impl_->store->renumber(cells);
    if (segment >= impl_->segments.size()) impl_->segments.resize(size_t{segment} + 1);
    loaded.impl_->store->move_to(*impl_->account);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
  impl_->segments[segment] = std::move(loaded.impl_->store);
  impl_->drop_if_empty(segment);
  return {};
}

Status LayerCache::copy_segment(SegmentId from, SegmentId to) {
  const tier::SegmentStore* store = impl_->segment(from);
  if (!store || store->n_live() == 0) {
    if (impl_->segment(to)) impl_->segments[to].reset();
    return {};
  }
  try {
    std::vector<Cell> cells;
    for (Cell cell = 0; cell < store->live().end(); ++cell) {
      if (store->live().contains(cell)) cells.push_back(cell);
    }
    std::vector<uint8_t> bytes;
    if (const Status status = save_segment(from, cells, bytes); !status) return status;
    auto loaded = load_segment(bytes, uint32_t(cells.size()), store->spec());
    if (!loaded) return loaded.error();
    return adopt_segment(to, std::move(loaded).value(), cells);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

}  // namespace mikv
