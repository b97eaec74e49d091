// Byte accounting: what memory_usage() says is what the allocator handed out, and presets are as small as they say.
#include <gtest/gtest.h>

#include <malloc.h>

#include <fstream>
#include <string>

#include "test_attention.hpp"

namespace mikv::test::memory_test {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCanMeasure = false;  // a sanitizer's allocator says nothing to mallinfo2()
#else
constexpr bool kCanMeasure = true;
#endif

/// Bytes in use on the heap, and bytes mapped otherwise: the process's private data, less what the heap took of it.
size_t allocated() {
  std::ifstream status("/proc/self/status");
  std::string word;
  size_t data_kib = 0;
  while (status >> word && word != "VmData:") {
  }
  status >> data_kib;
  const struct mallinfo2 heap = mallinfo2();
  return heap.uordblks + data_kib * 1024 - heap.arena;
}

constexpr size_t kChunk = 256;  // tokens put at once, so that the test's own data stays small

/// Puts n tokens, all from the same chunk of data.
void fill(LayerCache& layer, size_t n, const Tokens& chunk) {
  for (size_t done = 0; done < n; done += kChunk) {
    const std::vector<Cell> cells = cell_range(Cell(done), std::min(kChunk, n - done));
    const Status status = layer.put(0, cells, chunk.k.data(), chunk.k_stride, chunk.v.data(), chunk.v_stride);
    ASSERT_TRUE(status.ok()) << status.message();
  }
}

class MemoryTest : public testing::TestWithParam<const char*> {};

// Counted against allocated, before and after compression, and after a thousand generation steps.
TEST_P(MemoryTest, BytesUsedAreBytesAllocated) {
  if (!kCanMeasure) GTEST_SKIP() << "not under a sanitizer";
  Random random(80);
  const LayerShape shape{4, 2, 64, 64};
  const Tokens chunk(shape, kChunk, random);
  Request query(shape, 1, random);
  query.record = true;
  run(*make_layer(shape, GetParam()), query);  // what is set up once per process is not the cache's

  const size_t before = allocated();
  const auto expect_counted = [&](const LayerCache& layer, const char* when) {
    const double counted = double(layer.bytes_used()), used = double(allocated() - before);
    // 2 %, and 16 KiB for what does not grow: the objects themselves, the commit's working memory, malloc's headers.
    EXPECT_NEAR(counted, used, 0.02 * used + 16384.0) << when << ": counted " << counted << ", allocated " << used;
  };
  const auto layer = make_layer(shape, GetParam());
  fill(*layer, 4096, chunk);
  expect_counted(*layer, "staged");
  run(*layer, query);
  commit(*layer, 0);
  expect_counted(*layer, "committed");
  query.commit = true;
  for (Cell cell = 4096; cell < 5096; ++cell) {
    const Status status =
        layer->put(0, std::span(&cell, 1), chunk.k.data(), chunk.k_stride, chunk.v.data(), chunk.v_stride);
    ASSERT_TRUE(status.ok()) << status.message();
    if (cell % 10 == 0)
      run(*layer, query);
    else
      commit(*layer, 0);
  }
  expect_counted(*layer, "after 1000 steps");
  layer->erase_if(0, 0, 3000);
  expect_counted(*layer, "3000 cells erased");
  layer->clear();
  expect_counted(*layer, "cleared");
  EXPECT_LT(layer->bytes_used(), 4096u);
}

INSTANTIATE_TEST_SUITE_P(Specs, MemoryTest,
                         testing::Values("full", "h2o", "rtn4", "mikv-paper", "mikv", "mikv-max",
                                         "mikv:importance=full", "snapkv", "scissorhands", "fastgen", "llm-qat4",
                                         "llm-int8", "kivi2"),
                         name_of_spec);

/// Bits per element of a compressed cache of 4,096 tokens, all-in.
MemoryUsage usage_at_4096(const LayerShape& shape, const std::string& spec, uint32_t max_cells = kMaxCells) {
  Random random(81);
  const Tokens chunk(shape, kChunk, random);
  const auto layer = make_layer(shape, spec, max_cells);
  fill(*layer, 4096, chunk);
  Request query(shape, 1, random);
  query.record = true;
  run(*layer, query);
  EXPECT_TRUE(share_bits(*layer, 0).ok());
  commit(*layer, 0);
  return layer->memory_usage();
}

// An uncompressed cache needs its payload in f16, a cell number of 4 bytes for each head's token of 512 bytes and a bit
// for each cell: 16 and 0.13 bits, and reserves of 1/128 of it at most. There are no scores.
TEST(MemoryTest, AnUncompressedCacheTakesLittleMoreThanF16) {
  const MemoryUsage usage = usage_at_4096({12, 2, 128, 128}, "full");
  EXPECT_EQ(usage.staged, usage.n_elements * 2);
  EXPECT_NEAR(double(usage.ids), 2 * 4096 * 4 + 4096 / 8, 4096 / 8 / 8);  // the bitmap grows by itself
  EXPECT_EQ(usage.scores, 0u);
  EXPECT_EQ(usage.scales, 0u);
  EXPECT_LE(double(usage.total()), double(usage.staged + usage.ids) * (1.0 + 1.0 / 128) + 8192);
}

// The parts are what the formats say: codes and scales of the tokens in each tier, by arithmetic.
TEST(MemoryTest, PartsAreWhatTheFormatsSay) {
  const LayerShape shape{12, 2, 128, 64};
  struct Row {
    const char* spec;
    uint64_t hi_tokens, hi_bits, lo_bits, groups_k, groups_v;
  };
  for (const Row& row : {Row{"mikv:keep=0.1,lo=int3", 409, 8, 3, 2, 1},
                         {"mikv:keep=0.1,lo=int2", 409, 8, 2, 2, 1},
                         {"rtn4", 0, 16, 4, 2, 2},
                         {"mikv:hi=int4,lo=int2,keep=0.5,group=32", 2048, 4, 2, 4, 2}}) {
    SCOPED_TRACE(row.spec);
    const MemoryUsage usage = usage_at_4096(shape, row.spec);
    const uint64_t hi = 2 * row.hi_tokens, lo = 2 * (4096 - row.hi_tokens), scaled_hi = row.hi_bits == 16 ? 0 : hi;
    EXPECT_EQ(usage.n_hi_tokens, hi);
    EXPECT_EQ(usage.n_lo_tokens, lo);
    EXPECT_EQ(usage.n_staged_tokens, 0u);
    EXPECT_EQ(usage.n_elements, uint64_t{2} * 4096 * (128 + 64));
    EXPECT_EQ(usage.hi, hi * (128 + 64) * row.hi_bits / 8);
    EXPECT_EQ(usage.lo, lo * (128 + 64) * row.lo_bits / 8);
    EXPECT_EQ(usage.scales, (scaled_hi + lo) * (row.groups_k + row.groups_v) * 4);
    EXPECT_EQ(usage.staged, 0u);
    EXPECT_GE(usage.ids, (hi + lo) * 4 + 4096 / 8);
    EXPECT_LE(usage.slack, usage.total() / 20);
  }
}

// What presets with mixed bits promise, all-in, for the two commonest head dimensions.
TEST(MemoryTest, PresetsTakeTheBitsTheyPromise) {
  struct Row {
    const char* spec;
    double bits;
  };
  for (const Row& row : {Row{"mikv", 3.3}, {"mikv-hq", 4.4}, {"mikv-max", 2.4}}) {
    for (const uint32_t dim : {64u, 128u}) {
      for (const uint32_t max_cells : {1u << 16, kMaxCells}) {
        const double bits = usage_at_4096({12, 2, dim, dim}, row.spec, max_cells).bits_per_element();
        EXPECT_LE(bits, row.bits) << row.spec << ", " << dim;
        EXPECT_GE(bits, row.bits - 0.2) << row.spec << ", " << dim << ": what is promised is not used";
      }
    }
  }
}

// A sliding window: an engine that overwrites the same cells again and again needs no more room for it.
TEST(MemoryTest, OverwritingCellsTakesNoMoreRoom) {
  Random random(82);
  const LayerShape shape{4, 2, 64, 64};
  const Tokens chunk(shape, kChunk, random);
  for (const char* spec : {"full", "mikv", "rtn4", "h2o"}) {
    const auto layer = make_layer(shape, spec);
    uint64_t first_round = 0;
    for (int round = 0; round < 4; ++round) {
      for (Cell cell = 0; cell < 2048; cell += kChunk) {
        put(*layer, 0, cell_range(cell, kChunk), chunk);
        commit(*layer, 0);
      }
      EXPECT_EQ(layer->n_cells(0), 2048u);
      if (round == 0) first_round = layer->bytes_used();
      // The share of each tier may shift a little, and each may hold a reserve.
      EXPECT_LE(double(layer->bytes_used()), 1.15 * double(first_round)) << spec << ", round " << round;
    }
  }
}

// What rests needs no block to put the next token in.
TEST(MemoryTest, ATrimmedSegmentHasNoReserves) {
  Random random(83);
  const LayerShape shape{4, 2, 64, 64};
  const Tokens chunk(shape, kChunk, random);
  for (const char* spec : {"full", "mikv", "mikv-paper", "rtn4", "h2o", "kivi2"}) {
    SCOPED_TRACE(spec);
    const auto layer = make_layer(shape, spec);
    Cell next = 0;
    for (; next < 4 * kChunk; next += kChunk) put(*layer, 0, cell_range(next, kChunk), chunk);
    commit(*layer, 0);
    for (int step = 0; step < 40; ++step, ++next) {
      put(*layer, 0, cell_range(next, 1), Tokens(shape, 1, random));
      commit(*layer, 0);
    }
    const auto before = layer->dump(0, 1);
    const uint64_t slack = layer->memory_usage().slack;
    layer->trim(0);
    const uint64_t staged_block =
        std::string(spec) == "full" ? 0 : 16 * (shape.head_dim_k + shape.head_dim_v) * 2;  // 16 tokens of halves
    EXPECT_LE(layer->memory_usage().slack + shape.n_kv_heads * staged_block, slack);
    const auto after = layer->dump(0, 1);
    ASSERT_EQ(after.size(), before.size());
    for (size_t i = 0; i < after.size(); ++i) {
      EXPECT_EQ(after[i].cell, before[i].cell);
      EXPECT_EQ(after[i].k, before[i].k);
      EXPECT_EQ(after[i].v, before[i].v);
    }
    put(*layer, 0, cell_range(next, 1), Tokens(shape, 1, random));
    commit(*layer, 0);
    EXPECT_EQ(layer->n_cells(0), next + 1);
  }
}

TEST(MemoryTest, UsagesAdd) {
  MemoryUsage a = usage_at_4096({4, 2, 64, 64}, "mikv");
  const MemoryUsage b = usage_at_4096({4, 2, 64, 64}, "rtn2");
  const uint64_t total = a.total() + b.total(), elements = a.n_elements + b.n_elements,
                 lo = a.n_lo_tokens + b.n_lo_tokens;
  a += b;
  EXPECT_EQ(a.total(), total);
  EXPECT_EQ(a.n_elements, elements);
  EXPECT_EQ(a.n_lo_tokens, lo);
  EXPECT_EQ(MemoryUsage{}.bits_per_element(), 0.0);
}

}  // namespace
}  // namespace mikv::test::memory_test
