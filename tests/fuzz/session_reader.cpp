// Whatever bytes a saved cache consists of, reading them is harmless, and what is accepted can be attended, compressed
// and saved again. An entry point of libFuzzer (make fuzz); ctest runs it over the corpus in this folder.
//
// The first byte chooses a spec and what the rest is: a whole file, or, so that checksums are not in the way, a part of
// one.
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "layer/layer_cache.hpp"
#include "layer/share_bits.hpp"
#include "session/container.hpp"
#include "session/saved_context.hpp"
#include "session_reader.hpp"

namespace mikv::test {

std::unique_ptr<LayerCache> fuzzed_layer(uint8_t choice) {
  return LayerCache::create(kFuzzedShape, Spec::parse(kFuzzedSpecs[choice % kFuzzedSpecs.size()]).value(), 4096)
      .value();
}

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void use(LayerCache& layer, std::span<const uint8_t> bytes, uint32_t n_cells) {
  auto loaded = layer.load_segment(bytes, n_cells);
  if (!loaded) return require(!loaded.message().empty());
  std::vector<Cell> cells(n_cells);
  for (uint32_t i = 0; i < n_cells; ++i) cells[i] = i * 3 % 4096;
  if (n_cells > 1365) return;  // three times as many would not be distinct
  require(layer.adopt_segment(0, std::move(loaded).value(), cells).ok());
  const uint64_t n_live = layer.n_cells(0);
  require(n_live <= n_cells);

  std::vector<float> q(kFuzzedShape.n_heads * kFuzzedShape.head_dim_k, 0.5f),
      out(kFuzzedShape.n_heads * kFuzzedShape.head_dim_v);
  const std::array<SegmentId, 1> segments = {0};
  LayerAttendArgs args;
  args.q = q.data();
  args.q_head_stride = kFuzzedShape.head_dim_k;
  args.q_token_stride = q.size();
  args.out = out.data();
  args.out_head_stride = kFuzzedShape.head_dim_v;
  args.out_token_stride = out.size();
  args.n_tokens = 1;
  args.scale = 0.25f;
  args.segments = segments;
  args.record = args.commit = true;
  Workspace workspace(1);
  LayerCache* const alone = &layer;
  require(share_bits(std::span(&alone, 1), 0).ok());
  require(layer.attend(args, workspace).ok());
  require(layer.n_cells(0) == n_live);
  layer.erase(0, std::span(cells).first(n_cells / 3));
  require(layer.attend(args, workspace).ok());
  std::vector<uint8_t> again;
  require(layer.n_cells(0) == 0 || layer.save_segment(0, cells, again).ok());
}

}  // namespace
}  // namespace mikv::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mikv;
  if (size < 3) return 0;
  const auto layer = test::fuzzed_layer(data[0] & 15);
  const uint32_t n_cells = data[1] | uint32_t{data[2]} << 8;
  const std::span<const uint8_t> rest(data + 3, size - 3);
  switch (data[0] >> 4) {
    case 0:
      if (const auto sections = session::unpack(rest)) {
        for (const session::SectionView& section : sections.value().sections) test::use(*layer, section.data, n_cells);
      }
      break;
    case 1: (void)session::Identity::read(rest); break;
    case 2:
      if (const auto stream = session::read_engine(rest)) {
        uint64_t end = 0;
        for (const auto& hole : stream.value().holes) {
          test::require(hole.offset >= end && hole.offset + hole.size <= stream.value().size);
          end = hole.offset + hole.size;
        }
      }
      break;
    case 3:
      if (const auto sequences = session::read_sequences(rest)) {
        for (const auto& sequence : sequences.value()) test::require(sequence.seen.size() * 4 <= rest.size());
      }
      break;
    default: test::use(*layer, rest, n_cells);
  }
  return 0;
}
