// LayerCache: saving, loading and copying segments.
#include <new>

#include "layer/layer_impl.hpp"
#include "layer/segment_format.hpp"

namespace mikv {

struct LoadedSegment::Impl {
  std::unique_ptr<tier::SegmentStore> store;
  const LayerCache::Impl* owner = nullptr;  // whose layouts and account the store borrows
  uint32_t n_cells = 0;
};

LoadedSegment::LoadedSegment(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LoadedSegment::LoadedSegment(LoadedSegment&&) noexcept = default;
LoadedSegment& LoadedSegment::operator=(LoadedSegment&&) noexcept = default;
LoadedSegment::~LoadedSegment() = default;

namespace {

Error no_memory() {
  return Error{ErrorCode::out_of_memory, "out of memory copying a part of the KV cache; use fewer or shorter contexts"};
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

Result<LoadedSegment> LayerCache::load_segment(std::span<const uint8_t> bytes, uint32_t n_cells) const {
  if (n_cells > impl_->positions.max_cells) return Error{"the saved cache has more cells than this one"};
  try {
    auto store = session::load_segment(bytes, n_cells, {impl_->shape, impl_->spec, impl_->layouts});
    if (!store) return store.error();
    auto impl = std::make_unique<LoadedSegment::Impl>();
    impl->store = std::move(store).value();
    impl->owner = impl_.get();
    impl->n_cells = n_cells;
    return LoadedSegment(std::move(impl));
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

Status LayerCache::adopt_segment(SegmentId segment, LoadedSegment loaded, std::span<const Cell> cells) {
  if (segment >= kMaxSegments) return Error{"segment " + std::to_string(segment) + " is out of range; use 0 to 4095"};
  if (loaded.impl_->owner != impl_.get())
    return Error{"a segment that another cache has loaded; load it into this one"};
  if (cells.size() != loaded.impl_->n_cells) return Error{"a loaded segment needs as many cells as it was saved with"};
  for (const Cell cell : cells) {
    if (cell >= impl_->positions.max_cells) return Error{"cell " + std::to_string(cell) + " is out of range"};
  }
  try {
    loaded.impl_->store->renumber(cells);
    if (segment >= impl_->segments.size()) impl_->segments.resize(size_t{segment} + 1);
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
    auto loaded = load_segment(bytes, uint32_t(cells.size()));
    if (!loaded) return loaded.error();
    return adopt_segment(to, std::move(loaded).value(), cells);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

}  // namespace mikv
