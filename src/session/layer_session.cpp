// LayerCache: saving, loading and copying frames.
#include <new>

#include "cache/layer_impl.hpp"
#include "session/frame_format.hpp"

namespace mikv {

struct LoadedFrame::Impl {
  std::unique_ptr<cache::FrameStore> store;
  uint32_t n_cells = 0;
};

LoadedFrame::LoadedFrame(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
LoadedFrame::LoadedFrame(LoadedFrame&&) noexcept = default;
LoadedFrame& LoadedFrame::operator=(LoadedFrame&&) noexcept = default;
LoadedFrame::~LoadedFrame() = default;

namespace {

Error no_memory() { return Error{"out of memory copying a part of the KV cache; use fewer or shorter contexts"}; }

}  // namespace

Status LayerCache::save_frame(FrameId frame, std::span<const Cell> cells, std::vector<uint8_t>& to) const {
  const cache::FrameStore* store = impl_->frame(frame);
  if (!store) return Error{"frame " + std::to_string(frame) + " holds nothing to save"};
  try {
    session::save_frame(*store, cells, to);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
  return {};
}

Result<LoadedFrame> LayerCache::load_frame(std::span<const uint8_t> bytes, uint32_t n_cells) const {
  if (n_cells > impl_->positions.max_cells) return Error{"the saved cache has more cells than this one"};
  try {
    auto store = session::load_frame(bytes, n_cells, {impl_->shape, impl_->spec, impl_->layouts});
    if (!store) return Error{store.error()};
    auto impl = std::make_unique<LoadedFrame::Impl>();
    impl->store = std::move(store).value();
    impl->n_cells = n_cells;
    return LoadedFrame(std::move(impl));
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

Status LayerCache::adopt_frame(FrameId frame, LoadedFrame loaded, std::span<const Cell> cells) {
  if (frame >= kMaxFrames) return Error{"frame " + std::to_string(frame) + " is out of range; use 0 to 4095"};
  if (cells.size() != loaded.impl_->n_cells) return Error{"a loaded frame needs as many cells as it was saved with"};
  for (const Cell cell : cells) {
    if (cell >= impl_->positions.max_cells) return Error{"cell " + std::to_string(cell) + " is out of range"};
  }
  try {
    loaded.impl_->store->renumber(cells);
    if (frame >= impl_->frames.size()) impl_->frames.resize(size_t{frame} + 1);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
  impl_->frames[frame] = std::move(loaded.impl_->store);
  impl_->drop_if_empty(frame);
  return {};
}

Status LayerCache::copy_frame(FrameId from, FrameId to) {
  const cache::FrameStore* store = impl_->frame(from);
  if (!store || store->n_live() == 0) {
    if (impl_->frame(to)) impl_->frames[to].reset();
    return {};
  }
  try {
    std::vector<Cell> cells;
    for (Cell cell = 0; cell < store->live().end(); ++cell) {
      if (store->live().contains(cell)) cells.push_back(cell);
    }
    std::vector<uint8_t> bytes;
    if (const Status status = save_frame(from, cells, bytes); !status) return status;
    auto loaded = load_frame(bytes, uint32_t(cells.size()));
    if (!loaded) return Error{loaded.error()};
    return adopt_frame(to, std::move(loaded).value(), cells);
  } catch (const std::bad_alloc&) {
    return no_memory();
  }
}

}  // namespace mikv
