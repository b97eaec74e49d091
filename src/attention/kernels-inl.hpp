// The attention kernels. Included once per SIMD target. See kernel_api.hpp for what they compute.
//
// A strip is 128 tokens (8 blocks): logits of all rows; running maximum and exponentials; weighted values. With few
// rows (a decode step) the tiles are decoded on the fly, but for mixed ones on AVX2; with more (a prefill chunk) each
// tile is decoded once before. Keys by channel are decoded block by block, to floats with their scales: a scale for
// each row of a tile would have to meet each query row.

#if defined(MIKV_KERNELS_INL) == defined(HWY_TARGET_TOGGLE)
#ifdef MIKV_KERNELS_INL
#undef MIKV_KERNELS_INL
#else
#define MIKV_KERNELS_INL
#endif

#include <type_traits>

#include "attention/float_tiles-inl.hpp"
#include "attention/integer_tiles-inl.hpp"
#include "attention/kernel_api.hpp"
#include "attention/mask-inl.hpp"
#include "attention/prepare-inl.hpp"
#include "attention/softmax-inl.hpp"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace mikv::attention::HWY_NAMESPACE {

// ---------------------------------------------------------------- dispatch on format and row count

struct StripArgs {
  const BlockSpan& span;
  const uint8_t* blocks;  // of the strip
  uint32_t n_blocks;
  const Rows* rows;
  const State* state;  // null: logits only
  const Scratch& scratch;
  Ahead& ahead;
  bool adds = false;  // logits are added to those that are there
};

template <class TileReader, uint32_t kRows>
HWY_ATTR void LogitsOf(const StripArgs& args, const Tiles& tiles, uint32_t row) {
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    const uint8_t* block = args.blocks + b * args.span.layout->bytes;
    float* logits = args.scratch.logits + row * kStripTokens + b * kLanes;
    if constexpr (HandsOutQuads<TileReader>) {
      BlockLogits<TileReader, kRows>(args.span, block, tiles, b, *args.rows, row, logits, args.ahead);
    } else {
      BlockLogits<TileReader, kRows>(args.span, block, tiles, b, *args.rows, row, args.adds, logits, args.ahead);
    }
  }
}

template <class TileReader, uint32_t kRows>
HWY_ATTR void ValuesOf(const StripArgs& args, const Tiles& tiles, uint32_t row) {
  StripValues<TileReader, kRows>(args.span, args.blocks, args.n_blocks, tiles, *args.state, row, args.scratch,
                                 args.ahead);
}

enum class Work { logits, values };

template <Work kWork, class TileReader, uint32_t kRows>
HWY_ATTR void RunRows(const StripArgs& args, const Tiles& tiles, uint32_t row, uint32_t n) {
  if (n == kRows) {
    if constexpr (kWork == Work::logits) return LogitsOf<TileReader, kRows>(args, tiles, row);
    return ValuesOf<TileReader, kRows>(args, tiles, row);
  }
  if constexpr (kRows > 1) RunRows<kWork, TileReader, kRows - 1>(args, tiles, row, n);
}

inline uint32_t RowChunks(uint32_t n_rows) { return (n_rows + kMaxRows - 1) / kMaxRows; }

// All rows, in chunks of nearly equal size: 12 rows are 6 + 6, not 8 + 4.
template <Work kWork, class TileReader>
HWY_ATTR void RunChunks(const StripArgs& args, const Tiles& tiles, uint32_t n_rows) {
  const uint32_t n_chunks = RowChunks(n_rows);
  for (uint32_t chunk = 0; chunk < n_chunks; ++chunk) {
    const uint32_t row = n_rows * chunk / n_chunks, end = n_rows * (chunk + 1) / n_chunks;
    RunRows<kWork, TileReader, kMaxRows>(args, tiles, row, end - row);
  }
}

constexpr codec::TileTable EvenRow(size_t tile_bytes) {
  codec::TileTable row;
  for (uint32_t t = 0; t < codec::kMaxTiles; ++t) row.at[t] = uint16_t(t * tile_bytes);
  return row;
}

// Tile t of all blocks of the strip to tiles that Unpacked reads, the first at `out`.
template <class TileReader, class Unpacked>
HWY_ATTR void UnpackTile(const Tiles& tiles, uint32_t n_blocks, uint32_t t, LevelTable levels, uint8_t* out,
                         size_t stride) {
  const auto unpack = [&](auto reader, LevelTable table) HWY_ATTR {
    for (uint32_t b = 0; b < n_blocks; ++b) {
      Unpacked::template Unpack<typename decltype(reader)::type>(tiles.Of(b, t), table, out + b * stride);
    }
  };
  if constexpr (kIsMixed<TileReader>) {
    WithQuads<TileReader>(tiles.Bits(t), unpack);
  } else if constexpr (kIsMixedRows<TileReader>) {
    WithQuads<typename TileReader::OfTile>(tiles.Bits(t), [&](auto quads, LevelTable table) HWY_ATTR {
      unpack(std::type_identity<FloatRows<typename decltype(quads)::type>>(), table);
    });
  } else {
    unpack(std::type_identity<TileReader>(), levels);
  }
}

// From how many rows on tiles are decoded once: where they would be decoded more than twice. Where there are 16
// registers, a product that must first choose how its tile is decoded would leave its sums in memory. The portable
// fallback decodes all tiles once: nobody waits for its speed, but everybody for the compiler.
template <class TileReader>
constexpr uint32_t kUnpacksFrom =
    HWY_TARGET == HWY_BASELINE_SCALAR || (HWY_TARGET == HWY_AVX2 && kIsMixed<TileReader>) ? 1 : 2 * kMaxRows + 1;

// Tiles that many rows will meet are decoded once, to tiles that Unpacked reads.
template <Work kWork, class TileReader, class Unpacked>
HWY_ATTR void RunFormat(const StripArgs& args, uint32_t n_rows) {
  const codec::BlockLayout& layout = *args.span.layout;
  const bool keys = kWork == Work::logits;
  const Tiles tiles{args.blocks + (keys ? layout.data_k : layout.data_v), layout.bytes,
                    keys ? &layout.row_k : &layout.row_v};
  if constexpr (std::is_same_v<TileReader, Unpacked> || kUnpacksFrom<TileReader> > 1) {
    if (std::is_same_v<TileReader, Unpacked> || n_rows < kUnpacksFrom<TileReader>) {
      return RunChunks<kWork, TileReader>(args, tiles, n_rows);
    }
  }
  const uint32_t n_tiles = keys ? layout.tiles_k : layout.tiles_v;
  const LevelTable levels = LevelsOf<TileReader>();
  static constexpr codec::TileTable kRow = EvenRow(Unpacked::kTileBytes);
  uint8_t* memory = reinterpret_cast<uint8_t*>(args.scratch.decoded);
  const size_t stride = n_tiles * Unpacked::kTileBytes;
  for (uint32_t t = 0; t < n_tiles; ++t) {
    UnpackTile<TileReader, Unpacked>(tiles, args.n_blocks, t, levels, memory + kRow.at[t], stride);
  }
  RunChunks<kWork, Unpacked>(args, {memory, stride, &kRow}, n_rows);
}
static_assert(codec::kMaxTiles * UnpackedRows::kTileBytes <= UINT16_MAX + 1);

template <Work kWork, uint32_t kBits>
HWY_ATTR void RunBits(const StripArgs& args, uint32_t n_rows) {
  if constexpr (kBits == 16) {
    RunFormat<kWork, HalfRows, UnpackedRows>(args, n_rows);
  } else {
    using Mixed = std::conditional_t<kWork == Work::logits, MixedKeys, MixedValues>;
    using Quads = std::conditional_t<kBits == codec::kMixedBits, Mixed, Uniform<kBits>>;
#if MIKV_HAS_INTEGER_TILES
    RunFormat<kWork, Quads, Quads8>(args, n_rows);
#else
    RunFormat<kWork, FloatRows<Quads>, UnpackedRows>(args, n_rows);
#endif
  }
}

// Keys by channel: each block becomes one of floats without scales.
template <uint32_t kBits>
HWY_ATTR void RunChannelLogits(const StripArgs& args, uint32_t n_rows) {
  using Reader = FloatRows<Uniform<kBits>>;
  static constexpr codec::TileTable kRow = EvenRow(UnpackedRows::kTileBytes);
  const codec::BlockLayout& layout = *args.span.layout;
  const LevelTable levels = LevelsOf<Reader>();
  uint8_t* memory = reinterpret_cast<uint8_t*>(args.scratch.decoded);
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    const uint8_t* block = args.blocks + b * layout.bytes;
    for (uint32_t t = 0; t < layout.tiles_k; ++t) {
      float alpha[kLanes], beta[kLanes];
      for (size_t i = 0; i < kLanes; i += Width()) {
        const Scales scales = LoadScales(layout, block + layout.scales_k, t, i);
        hn::StoreU(scales.alpha, DF(), alpha + i);
        hn::StoreU(scales.beta, DF(), beta + i);
      }
      UnpackedRows::UnpackScaled<Reader>(block + layout.data_k + layout.row_k.at[t], levels, alpha, beta,
                                         memory + kRow.at[t]);
    }
    Scratch at = args.scratch;
    at.logits += b * kLanes;
    RunChunks<Work::logits, UnpackedRows>({args.span, block, 1, args.rows, args.state, at, args.ahead},
                                          {memory, 0, &kRow}, n_rows);
  }
}

template <Work kWork>
HWY_ATTR void Run(const StripArgs& args, uint32_t n_rows) {
  if constexpr (kWork == Work::logits) {
    if (args.span.layout->keys_by_channel) {
      return codec::visit_bits<codec::has_blocks>(args.span.layout->bits, [&](auto bits) HWY_ATTR {
        if constexpr (bits != 16 && bits != codec::kMixedBits) RunChannelLogits<bits>(args, n_rows);
      });
    }
  }
  codec::visit_bits<codec::has_blocks>(args.span.layout->bits,
                                       [&](auto bits) HWY_ATTR { RunBits<kWork, bits>(args, n_rows); });
  if (!args.span.outliers) return;
  const BlockSpan outliers{args.span.blocks, args.span.outliers, args.span.outlier_geometry, args.span.n_tokens};
  RunBits<kWork, 16>(
      {outliers, args.blocks, args.n_blocks, args.rows->outliers, args.state, args.scratch, args.ahead, true}, n_rows);
}

// ---------------------------------------------------------------- one strip

HWY_ATTR inline void CapLogits(float* logits, uint32_t n, float softcap) {
  for (uint32_t i = 0; i < n; i += uint32_t(Width())) {
    const VF x = hn::Mul(hn::LoadU(DF(), logits + i), hn::Set(DF(), 1.0f / softcap));
    hn::StoreU(hn::Mul(hn::Set(DF(), softcap), hn::Tanh(DF(), x)), DF(), logits + i);
  }
}

// Final logits of a strip, hidden and unused tokens at -inf. False if no row sees any of its tokens: nothing to do
// then.
HWY_ATTR inline bool StripLogits(const StripArgs& args, uint32_t first_token, const QueryMask& mask, float softcap) {
  const uint32_t n_rows = args.rows->n;
  const codec::BlockLayout& layout = *args.span.layout;
  const uint32_t left = args.span.n_tokens - first_token;
  const uint32_t n_tokens = HWY_MIN(left, args.n_blocks * kLanes);
  const auto tokens_in = [n_tokens](uint32_t b) { return HWY_MIN(n_tokens - b * kLanes, kLanes); };
  const auto block_at = [&](uint32_t b) { return args.blocks + b * layout.bytes; };
  BlockMask masks[kStripBlocks];
  bool any = false;
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    masks[b].Gather(mask, layout, block_at(b), tokens_in(b));
    any = any || !masks[b].hidden;
  }
  if (!any) return false;

  Run<Work::logits>(args, n_rows);
  float* logits = args.scratch.logits;
  if (softcap > 0.0f) {
    for (uint32_t r = 0; r < n_rows; ++r) CapLogits(logits + r * kStripTokens, args.n_blocks * kLanes, softcap);
  }
  for (uint32_t b = 0; b < args.n_blocks; ++b) {
    if (!masks[b].plain) AddMask(mask, masks[b], layout, block_at(b), tokens_in(b), n_rows, logits + b * kLanes);
  }
  for (uint32_t r = 0; r < n_rows; ++r) {
    for (uint32_t i = n_tokens; i < kStripTokens; ++i) logits[r * kStripTokens + i] = kHidden;
  }
  return true;
}

// What the strip at blocks [first, first + n) fetches: the blocks that follow, up to `end`, or what comes then, in as
// many calls as it has tiles, or parts of tiles on narrower targets.
HWY_ATTR inline Ahead FetchAfter(const BlockSpan& span, uint32_t first, uint32_t n, uint32_t end, uint32_t n_rows,
                                 bool values) {
  const Geometry& geometry = *span.geometry;
  const size_t stride = span.layout->bytes;
  const size_t n_tiles = geometry.pairs_k.size() + (values ? geometry.pairs_v.size() : 0);
  const uint32_t n_left = end - first - n;
  const std::span<const uint8_t> next =
      n_left ? std::span(span.blocks + (first + n) * stride, HWY_MIN(kStripBlocks, n_left) * stride) : span.next;
  return {next.data(), next.data(), next.size() / (n * n_tiles * RowChunks(n_rows) * (kLanes / Width()))};
}

void Attend(const BlockSpan& span, uint32_t begin, uint32_t end, const Rows& rows, const QueryMask& mask, float softcap,
            const State& state, float* keep_logits, size_t keep_stride, const Scratch& scratch) {
  for (uint32_t first = begin; first < end; first += kStripBlocks) {
    const uint32_t n_blocks = HWY_MIN(kStripBlocks, end - first);
    Ahead ahead = FetchAfter(span, first, n_blocks, end, rows.n, true);
    const StripArgs args{span, span.blocks + first * span.layout->bytes, n_blocks, &rows, &state, scratch, ahead};
    const uint32_t first_token = first * kLanes;
    const bool visible = StripLogits(args, first_token, mask, softcap);
    if (keep_logits) {
      const uint32_t n = HWY_MIN(span.n_tokens - first_token, args.n_blocks * kLanes);
      for (uint32_t r = 0; r < rows.n; ++r) {
        float* kept = keep_logits + r * keep_stride + (first - begin) * kLanes;
        for (uint32_t i = 0; i < n; ++i) kept[i] = visible ? scratch.logits[r * kStripTokens + i] : kHidden;
      }
    }
    if (!visible) continue;
    StripSoftmax(rows.n, args.n_blocks, scratch.logits, state, scratch.factors);
    Run<Work::values>(args, rows.n);
  }
}

// ---------------------------------------------------------------- importance scores

void ScoreKept(const float* logits, size_t stride, uint32_t n, uint32_t n_rows, const float* row_max,
               const float* row_inverse_sum, float* scores) {
  for (uint32_t r = 0; r < n_rows; ++r) {
    AddProbabilities(logits + r * stride, n, row_max[r], row_inverse_sum[r], scores);
  }
}

void Score(const BlockSpan& span, uint32_t begin, uint32_t end, const Rows& rows, const QueryMask& mask, float softcap,
           const float* row_max, const float* row_inverse_sum, float* scores, const Scratch& scratch) {
  for (uint32_t first = begin; first < end; first += kStripBlocks) {
    const uint32_t n_blocks = HWY_MIN(kStripBlocks, end - first);
    Ahead ahead = FetchAfter(span, first, n_blocks, end, rows.n, false);
    const StripArgs args{span, span.blocks + first * span.layout->bytes, n_blocks, &rows, nullptr, scratch, ahead};
    const uint32_t first_token = first * kLanes;
    if (!StripLogits(args, first_token, mask, softcap)) continue;
    const uint32_t n = HWY_MIN(span.n_tokens - first_token, args.n_blocks * kLanes);
    ScoreKept(scratch.logits, kStripTokens, n, rows.n, row_max, row_inverse_sum, scores + first_token);
  }
}

const char* Name() {
#if HWY_TARGET == HWY_AVX3_DL
  return "avx512vnni";
#elif HWY_TARGET == HWY_AVX3
  return "avx512";
#elif HWY_TARGET == HWY_AVX2
  return MIKV_DOT_PRODUCTS ? "avxvnni" : "avx2";
#elif HWY_TARGET == HWY_NEON
  return MIKV_DOT_PRODUCTS ? "neondot" : "neon";
#else
  return "scalar";
#endif
}

const Kernels& Table() {
  static const Kernels table{Name(), PrepareRow, MIKV_HAS_INTEGER_TILES, SeesAll, MaskRange, Attend, Score, ScoreKept};
  return table;
}

}  // namespace mikv::attention::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
