// The corpus, and each of its inputs cut short and with bytes changed. MIKV_WRITE_SEEDS=1 writes the first inputs anew,
// when the format has changed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "session/container.hpp"
#include "session/saved_context.hpp"
#include "session_reader.hpp"
#include "test_attention.hpp"

namespace mikv::test {
namespace {

namespace fs = std::filesystem;

using Bytes = std::vector<uint8_t>;

void write(const std::string& name, uint8_t kind, uint16_t n_cells, const Bytes& rest) {
  std::ofstream out(fs::path(MIKV_FUZZ_CORPUS) / name, std::ios::binary);
  for (const uint8_t byte : {kind, uint8_t(n_cells), uint8_t(n_cells >> 8)}) out.put(char(byte));
  out.write(reinterpret_cast<const char*>(rest.data()), std::streamsize(rest.size()));
}

/// A segment that is staged in bytes, with sampled queries.
void write_staged(uint8_t spec) {
  Random random(3);
  const auto layer = fuzzed_layer(spec);
  put(*layer, 0, cell_range(0, 40), Tokens(kFuzzedShape, 40, random));
  Request request(kFuzzedShape, 40, random);
  request.record = true;
  run(*layer, request);
  layer->stage_in_bytes(true);
  Bytes segment;
  ASSERT_TRUE(layer->save_segment(0, cell_range(0, 40), segment).ok());
  write("staged-" + std::to_string(spec), uint8_t(0xf0 | spec), 40, segment);
}

void write_seeds() {
  Random random(1);
  for (uint8_t spec = 0; spec < kFuzzedSpecs.size(); ++spec) {
    const auto layer = fuzzed_layer(spec);
    for (const uint16_t n : {uint16_t{5}, uint16_t{40}}) {
      put(*layer, 0, cell_range(0, n), Tokens(kFuzzedShape, n, random));
      if (n > 20) commit(*layer, 0);
      Bytes segment;
      ASSERT_TRUE(layer->save_segment(0, cell_range(0, n), segment).ok());
      write("segment-" + std::to_string(spec) + "-" + std::to_string(n), uint8_t(0xf0 | spec), n, segment);
      const std::vector<session::Section> sections = {{5, 0, 0, segment}, {3, 0, 0, {}}};
      if (n == 5) write("file-" + std::to_string(spec), spec, n, session::pack(sections));
    }
    write_staged(spec);
  }
  write("identity", 0x10, 0, session::Identity{"a model", 42, "mikv"}.bytes());
  EngineState stream;
  stream.size = 20;
  stream.words.assign(12, 7);
  stream.holes = {{4, 3}, {10, 5}};
  write("stream", 0x20, 0, session::engine_bytes(stream));
  const std::vector<session::SavedSequence> sequences = {{0, 1, {1, 2}}, {3, session::kNoSegment, {2}}};
  write("sequences", 0x30, 0, session::sequence_bytes(sequences));
}

TEST(FuzzCorpusTest, EveryInputIsHarmless) {
  if (std::getenv("MIKV_WRITE_SEEDS")) write_seeds();
  Random random(2);
  size_t n_inputs = 0;
  for (const auto& entry : fs::directory_iterator(MIKV_FUZZ_CORPUS)) {
    SCOPED_TRACE(entry.path().filename());
    std::ifstream in(entry.path(), std::ios::binary);
    const Bytes bytes((std::istreambuf_iterator<char>(in)), {});
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    for (int trial = 0; trial < 40; ++trial) {
      Bytes bad = bytes;
      if (trial % 2) bad.resize(random.below(uint32_t(bad.size()) + 1));
      for (int change = 0; change < trial / 4 && !bad.empty(); ++change)
        bad[random.below(uint32_t(bad.size()))] = uint8_t(random.below(256));
      LLVMFuzzerTestOneInput(bad.data(), bad.size());
    }
    ++n_inputs;
  }
  EXPECT_GE(n_inputs, 24u);
}

}  // namespace
}  // namespace mikv::test
