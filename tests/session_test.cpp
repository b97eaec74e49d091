// Saved caches: what is loaded is what was saved, to the bit; damaged, cut and hostile bytes are refused or harmless;
// files are there whole or not at all.
#include "mikv/atomic_file.hpp"
#include "session/container.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>

#include "saved_segment.hpp"
#include "session_data.hpp"
#include "test_attention.hpp"

namespace mikv::test::session_test {
namespace {

namespace fs = std::filesystem;

constexpr LayerShape kShape{6, 2, 32, 24};

class SavedSegmentTest : public testing::TestWithParam<const char*> {
 protected:
  enum class Prompt { staged, in_bytes, compressed };
  void fill(LayerCache& layer, Random& random, Prompt as = Prompt::compressed) {
    Tokens prompt(kShape, 90, random);
    put(layer, 0, cell_range(5, 90), prompt);
    Request request(kShape, 80, random);  // some queries are sampled
    request.record = true;
    run(layer, request);
    if (as == Prompt::in_bytes) layer.stage_in_bytes(true);
    if (as == Prompt::compressed) commit(layer, 0);
    Tokens more(kShape, 7, random);  // some stay staged
    put(layer, 0, cell_range(200, 7), more);
  }
  std::vector<Cell> cells() {
    std::vector<Cell> cells = cell_range(200, 7);
    for (const Cell cell : cell_range(5, 90)) cells.push_back(cell);
    return cells;
  }
  std::vector<uint8_t> save(const LayerCache& layer) {
    std::vector<uint8_t> bytes;
    EXPECT_TRUE(layer.save_segment(0, cells(), bytes).ok());
    return bytes;
  }
};

TEST_P(SavedSegmentTest, GoesOnAsIfNothingHadHappened) {
  Random random(31);
  for (const Prompt as : {Prompt::compressed, Prompt::staged, Prompt::in_bytes}) {
    SCOPED_TRACE(int(as));
    const auto original = make_layer(kShape, GetParam()), other = make_layer(kShape, GetParam());
    fill(*original, random, as);
    const std::vector<uint8_t> bytes = save(*original);
    auto loaded = other->load_segment(bytes, uint32_t(cells().size()));
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    ASSERT_TRUE(other->adopt_segment(0, std::move(loaded).value(), cells()).ok());
    EXPECT_EQ(original->memory_usage().staged, other->memory_usage().staged);
    for (int step = 0; step < 40; ++step) {
      Tokens token(kShape, 1, random);
      Request request(kShape, 1, random);
      request.record = true;
      request.commit = step >= 2;
      std::vector<std::vector<float>> outs;
      for (LayerCache* layer : {original.get(), other.get()}) {
        put(*layer, 0, cell_range(300 + Cell(step), 1), token);
        outs.push_back(run(*layer, request));
      }
      ASSERT_EQ(outs[0], outs[1]) << "step " << step;
    }
  }
}

TEST_P(SavedSegmentTest, IsAboutAsLargeAsWhatItHolds) {
  Random random(32);
  const auto layer = make_layer(kShape, GetParam());
  Tokens prompt(kShape, 2000, random);
  put(*layer, 0, cell_range(0, 2000), prompt);
  commit(*layer, 0);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(layer->save_segment(0, cell_range(0, 2000), bytes).ok());
  const MemoryUsage usage = layer->memory_usage();
  EXPECT_LE(double(bytes.size()), 1.05 * double(usage.total()));
}

TEST_P(SavedSegmentTest, ApartOfTheCells) {
  Random random(33);
  const auto layer = make_layer(kShape, GetParam());
  fill(*layer, random);
  std::vector<Cell> half;
  for (Cell cell = 6; cell < 210; cell += 2) half.push_back(cell);  // many of them hold nothing
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(layer->save_segment(0, half, bytes).ok());
  auto loaded = layer->load_segment(bytes, uint32_t(half.size()));
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  ASSERT_TRUE(layer->adopt_segment(1, std::move(loaded).value(), half).ok());
  for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
    const auto all = sorted_dump(*layer, 0, head);
    size_t n = 0;
    for (const StoredToken& token : sorted_dump(*layer, 1, head)) {
      const auto same =
          std::find_if(all.begin(), all.end(), [&](const StoredToken& t) { return t.cell == token.cell; });
      ASSERT_NE(same, all.end());
      EXPECT_EQ(same->tier, token.tier);
      if (layer->spec().keys_by_channel && token.tier == TokenTier::lo) {
        // Keys of two blocks have been encoded together.
        for (size_t c = 0; c < token.k.size(); ++c)
          EXPECT_NEAR(same->k[c], token.k[c], quantisation_bound(-6.0, 6.0, layer->spec().lo));
      } else {
        EXPECT_EQ(same->k, token.k);
      }
      EXPECT_EQ(same->v, token.v);
      EXPECT_EQ(same->score, token.score);
      ++n;
    }
    EXPECT_EQ(n, 49u);  // 6, 8 .. 94 and 200 .. 206
  }
}

TEST_P(SavedSegmentTest, CutBytesAreRefused) {
  Random random(34);
  const auto layer = make_layer(kShape, GetParam());
  fill(*layer, random);
  const std::vector<uint8_t> bytes = save(*layer);
  for (size_t n = 0; n < bytes.size(); n += 1 + n / 50) {
    EXPECT_FALSE(layer->load_segment(std::span(bytes).first(n), uint32_t(cells().size())).ok()) << n;
  }
  std::vector<uint8_t> longer = bytes;
  longer.push_back(0);
  EXPECT_FALSE(layer->load_segment(longer, uint32_t(cells().size())).ok());
  EXPECT_FALSE(layer->load_segment(bytes, uint32_t(cells().size()) + 64).ok());
  EXPECT_FALSE(layer->load_segment(bytes, kMaxCells).ok());
}

// Without a checksum in the way: whatever is accepted must be safe to attend, commit and save.
TEST_P(SavedSegmentTest, AnyBytesAreHarmless) {
  Random random(35);
  std::vector<std::vector<uint8_t>> good;
  for (const Prompt as : {Prompt::staged, Prompt::in_bytes, Prompt::compressed}) {
    const auto layer = make_layer(kShape, GetParam());
    fill(*layer, random, as);
    good.push_back(save(*layer));
  }
  int accepted = 0;
  for (int trial = 0; trial < 900; ++trial) {
    std::vector<uint8_t> bad = good[size_t(trial) % good.size()];
    for (int change = 0; change <= trial % 4; ++change) {
      bad[random.below(uint32_t(bad.size()))] = uint8_t(random.below(256));
    }
    const auto other = make_layer(kShape, GetParam());
    auto loaded = other->load_segment(bad, uint32_t(cells().size()));
    if (!loaded) continue;
    ++accepted;
    ASSERT_TRUE(other->adopt_segment(0, std::move(loaded).value(), cells()).ok());
    ASSERT_TRUE(share_bits(*other, 0).ok());
    Request request(kShape, 1, random);
    request.record = request.commit = true;
    run(*other, request);
    EXPECT_EQ(other->n_cells(0), count_tiers(other->dump(0, 1)).total());
    save(*other);
  }
  EXPECT_GT(accepted, 0);  // else the test tests nothing: most bytes are codes, which may be anything
}

INSTANTIATE_TEST_SUITE_P(Specs, SavedSegmentTest,
                         testing::Values("full", "h2o", "rtn4", "mikv-paper", "mikv-paper-int2", "llm-qat4", "mikv",
                                         "mikv-max", "mikv:lo=int3,keep=0.3", "mikv:hi=int5,lo=int5,keep=0.3", "snapkv",
                                         "scissorhands", "fastgen", "llm-int8", "kivi2:group=8,residual=16"),
                         name_of_spec);

TEST(SavedSegmentCasesTest, OfAnotherSpecOrShapeIsRefusedOrHarmless) {
  Random random(36);
  const auto from = make_layer(kShape, "mikv");
  Tokens prompt(kShape, 64, random);
  put(*from, 0, cell_range(0, 64), prompt);
  commit(*from, 0);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(from->save_segment(0, cell_range(0, 64), bytes).ok());
  for (const char* spec : {"full", "rtn4", "mikv-paper", "h2o"})
    EXPECT_FALSE(make_layer(kShape, spec)->load_segment(bytes, 64).ok()) << spec;
  for (const LayerShape shape : {LayerShape{6, 2, 16, 24}, LayerShape{6, 3, 32, 24}, LayerShape{6, 1, 32, 24}}) {
    EXPECT_FALSE(make_layer(shape, "mikv")->load_segment(bytes, 64).ok());
  }
  EXPECT_FALSE(from->save_segment(7, cell_range(0, 64), bytes).ok());
}

TEST(SavedSegmentCasesTest, OfASpecThatNoHeadOfThisShapeCanHaveIsRefused) {
  Random random(8);
  for (const uint32_t dim : {8u, 16u}) {
    const LayerShape shape{6, 2, dim, dim};
    const auto layer = make_layer(shape, "rtn8");
    put(*layer, 0, cell_range(0, 64), Tokens(shape, 64, random));
    std::vector<uint8_t> bytes;
    ASSERT_TRUE(layer->save_segment(0, cell_range(0, 64), bytes).ok());
    for (const char* saved : {"llm-int8", "llm-int8:lo=int5", "rtn4:outlier=f16"}) {
      const auto loaded = layer->load_segment(bytes, 64, Spec::parse(saved).value());
      EXPECT_EQ(loaded.error().code, ErrorCode::mismatch) << saved << ", " << dim;
    }
  }
}

// A scale and a zero for each element of the longest heads.
TEST(SavedSegmentCasesTest, OfTheLargestBlocks) {
  Random random(10);
  const LayerShape shape{1, 1, 512, 512};
  const auto layer = make_layer(shape, "rtn8:group=1");
  put(*layer, 0, cell_range(0, 20), Tokens(shape, 20, random));
  commit(*layer, 0);
  std::vector<uint8_t> bytes, again;
  ASSERT_TRUE(layer->save_segment(0, cell_range(0, 20), bytes).ok());
  auto loaded = layer->load_segment(bytes, 20);
  ASSERT_TRUE(loaded.ok()) << loaded.message();
  ASSERT_TRUE(layer->adopt_segment(1, std::move(loaded).value(), cell_range(0, 20)).ok());
  ASSERT_TRUE(layer->save_segment(1, cell_range(0, 20), again).ok());
  EXPECT_EQ(again, bytes) << "unused places are zero";
}

TEST(SavedSegmentCasesTest, OfTheOtherQuantiserIsReadAsItWasSaved) {
  Random random(9);
  const auto from = make_layer(kShape, "llm-qat8"), to = make_layer(kShape, "llm-qat8:quantiser=asymmetric");
  Tokens prompt(kShape, 64, random);
  put(*from, 0, cell_range(0, 64), prompt);
  commit(*from, 0);
  std::vector<uint8_t> bytes;
  ASSERT_TRUE(from->save_segment(0, cell_range(0, 64), bytes).ok());
  auto loaded = to->load_segment(bytes, 64, from->spec());
  ASSERT_TRUE(loaded.ok()) << loaded.message();
}

// ---------------------------------------------------------------- the container

std::vector<uint8_t> small_container() {
  const std::vector<session::Section> sections = {
      {1, 2, 3, {1, 2, 3, 4, 5}}, {4, 0, 0, {}}, {7, 8, 9, std::vector<uint8_t>(100, 6)}};
  return session::pack(sections);
}

TEST(ContainerTest, HoldsWhatWasPacked) {
  const auto bytes = small_container();
  const auto sections = session::unpack(bytes);
  ASSERT_TRUE(sections.ok()) << sections.message();
  ASSERT_EQ(sections.value().sections.size(), 3u);
  EXPECT_EQ(sections.value().sections[0].b, 3u);
  EXPECT_EQ(sections.value().sections[0].data.size(), 5u);
  EXPECT_EQ(sections.value().sections[2].data[99], 6);
}

TEST(ContainerTest, EveryFlippedByteAndEveryTruncationIsRefused) {
  const auto bytes = small_container();
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (const uint8_t flip : {1, 0x80, 0xFF}) {
      auto bad = bytes;
      bad[i] ^= flip;
      EXPECT_FALSE(session::unpack(bad).ok()) << i;
    }
    EXPECT_FALSE(session::unpack(std::span(bytes).first(i)).ok()) << i;
  }
  auto longer = bytes;
  longer.push_back(0);
  EXPECT_FALSE(session::unpack(longer).ok());
}

TEST(ContainerTest, RefusesByName) {
  auto bytes = small_container();
  bytes[8] = 9;
  EXPECT_NE(session::unpack(bytes).message().find("version 9"), std::string::npos);
  const std::string text = "ggsq this is a file of llama.cpp";
  EXPECT_NE(
      session::unpack({reinterpret_cast<const uint8_t*>(text.data()), text.size()}).message().find("no saved cache"),
      std::string::npos);
}

// Before queries of the last 64 tokens were sampled too, a sample had the first half of the places it has now.
TEST(SavedSampleTest, SmallerOnesOfBeforeLoad) {
  constexpr LayerShape kOneHead{2, 1, 32, 16};
  Random random(36);
  const auto layer = make_layer(kOneHead, "mikv");
  Tokens prompt(kOneHead, 90, random);
  put(*layer, 0, cell_range(0, 90), prompt);
  Request request(kOneHead, 80, random);
  request.record = true;
  run(*layer, request);
  std::vector<uint8_t> now;
  ASSERT_TRUE(layer->save_segment(0, cell_range(0, 90), now).ok());
  const SavedHead head = read_saved_segment(now, 90, kOneHead, layer->spec(), sizeof(Cell)).heads[0];
  ASSERT_TRUE(head.sampled);
  ASSERT_EQ(head.sample_arrivals.size(), 16u);
  const size_t at = head.arrivals.begin, queries = head.queries.begin, end = head.queries.end;
  const auto with_places = [&](uint32_t n) {
    std::vector<uint8_t> bytes(now.begin(), now.begin() + ptrdiff_t(at));
    const auto append = [&](uint32_t length, size_t from, size_t size) {
      for (int i = 0; i < 4; ++i) bytes.push_back(uint8_t(length >> 8 * i));
      bytes.insert(bytes.end(), now.begin() + ptrdiff_t(from), now.begin() + ptrdiff_t(from + size));
    };
    append(n, at + 4, n * 4);
    append(n * 2 * 32, queries + 4, size_t{n} * 2 * 32 * 2);
    bytes.insert(bytes.end(), now.begin() + ptrdiff_t(end), now.end());
    return bytes;
  };
  EXPECT_EQ(with_places(16), now);
  EXPECT_FALSE(layer->load_segment(with_places(7), 90).ok());
  const auto other = make_layer(kOneHead, "mikv");
  auto segment = other->load_segment(with_places(8), 90);
  ASSERT_TRUE(segment.ok()) << segment.message();
  ASSERT_TRUE(other->adopt_segment(0, std::move(segment).value(), cell_range(0, 90)).ok());
  EXPECT_EQ(other->n_cells(0), 90u);
  std::vector<uint8_t> again;
  ASSERT_TRUE(other->save_segment(0, cell_range(0, 90), again).ok());
  EXPECT_EQ(again.size(), now.size());
  EXPECT_TRUE(std::equal(again.begin(), again.begin() + ptrdiff_t(at + 4 + 8 * 4), now.begin()));
}

// ---------------------------------------------------------------- files of older builds (tests/data/README.md)

Result<std::vector<uint8_t>> read_data(const std::string& name) {
  return read_file(std::string(MIKV_TEST_DATA) + "/" + name);
}

/// Each tier of the part holds the tokens it should, with what they were given.
void expect_session_part(const session::SectionView& section) {
  const SessionPart part{section.kind};
  const auto layer = make_session_layer();
  auto segment = layer->load_segment(section.data, kSessionTokens);
  ASSERT_TRUE(segment.ok()) << segment.message();
  ASSERT_TRUE(layer->adopt_segment(0, std::move(segment).value(), cell_range(0, kSessionTokens)).ok());
  const bool compressed = part == SessionPart::compressed || part == SessionPart::continued;
  const uint32_t n_prompt = kSessionTokens - kSessionStaged;
  for (uint32_t head = 0; head < kSessionShape.n_kv_heads; ++head) {
    const std::vector<StoredToken> tokens = sorted_dump(*layer, 0, head);
    ASSERT_EQ(tokens.size(), kSessionTokens);
    const TierCounts counts = count_tiers(tokens);
    EXPECT_EQ(counts.staged, compressed ? kSessionStaged : kSessionTokens);
    // A quarter of the prompt, and of the segment before it the share of recent tokens.
    const uint64_t before = part == SessionPart::continued ? uint64_t(0.75 * (kSessionTokens / 4)) : 0;
    EXPECT_EQ(counts.hi, compressed ? n_prompt / 4 + before : 0);
    for (const bool key : {true, false}) {
      double lost = 0.0, squares = 0.0, most = 0.0;
      for (const StoredToken& token : tokens) {
        const std::vector<float> given = session_row(token.cell, head, key);
        const std::vector<float>& stored = key ? token.k : token.v;
        const auto [low, high] = std::minmax_element(given.begin(), given.end());
        for (size_t c = 0; c < given.size(); ++c) {
          const double error = std::abs(double(stored[c]) - given[c]);
          if (token.tier == TokenTier::lo) {
            lost += error * error, squares += std::pow(given[c] - float(c % 3), 2);
          } else if (token.tier == TokenTier::staged && part != SessionPart::in_bytes) {
            EXPECT_EQ(stored[c], given[c]) << "cell " << token.cell;
          } else {
            most = std::max(most, error / double(*high - *low));
          }
        }
      }
      // Bytes: half a step of 255, in coordinates that a balancer may stretch by 4 between channels.
      EXPECT_LT(most, 4.0 * 0.5 / 255.0) << (key ? "K" : "V");
      // 3.5 bits with ids and scales leave 2 to 3 for codes: 0.09 of the variance at most.
      EXPECT_LE(lost, 0.09 * squares) << (key ? "K" : "V");
    }
  }
}

TEST(SessionDataTest, AFileOfEveryVersionLoadsOrIsRefusedByName) {
  for (uint32_t version = 1; version <= session::kContainerVersion; ++version) {
    SCOPED_TRACE(version);
    const std::string name = "session-v" + std::to_string(version);
    const auto bytes = read_data(name + ".bin");
    ASSERT_TRUE(bytes.ok()) << bytes.message() << "; mikv_write_session_data makes it (tests/data/README.md)";
    const auto sections = session::unpack(bytes.value());
    if (!sections.ok()) {
      EXPECT_NE(version, session::kContainerVersion) << sections.message();
      EXPECT_NE(sections.message().find("version " + std::to_string(version)), std::string::npos) << sections.message();
      continue;
    }
    ASSERT_EQ(sections.value().sections.size(), kSessionParts);
    for (const session::SectionView& section : sections.value().sections) {
      SCOPED_TRACE(section.kind);
      expect_session_part(section);
    }
  }
}

TEST(SessionDataTest, WhatIsWrittenNowIsWhatTheFileSays) {
  const std::vector<uint8_t> bytes = session::pack(make_session_data());
  const auto sections = session::unpack(bytes);
  ASSERT_TRUE(sections.ok()) << sections.message();
  for (const session::SectionView& section : sections.value().sections) {
    SCOPED_TRACE(section.kind);
    expect_session_part(section);
  }
}

TEST(SessionDataTest, AnEarlyFileOfVersion1LoadsOrIsRefusedByName) {
  const auto bytes = read_data("session-v1-early.bin");
  ASSERT_TRUE(bytes.ok()) << bytes.message();
  const auto sections = session::unpack(bytes.value());
  if (!sections.ok()) {
    EXPECT_GT(session::kContainerVersion, 1u) << sections.message();
    EXPECT_NE(sections.message().find("version 1"), std::string::npos) << sections.message();
    return;
  }
  const auto layer = make_layer({2, 1, 16, 16}, "mikv:keep=0.25,bits=3.5");
  auto segment = layer->load_segment(sections.value().sections[0].data, 20);
  ASSERT_TRUE(segment.ok()) << segment.message();
  ASSERT_TRUE(layer->adopt_segment(0, std::move(segment).value(), cell_range(0, 20)).ok());
  EXPECT_EQ(layer->n_cells(0), 20u);
  EXPECT_EQ(count_tiers(layer->dump(0, 0)).hi, 5u);
}

// ---------------------------------------------------------------- files

class SessionFileTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mikv-session-XXXXXX";
    folder_ = mkdtemp(name);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  size_t n_files() const { return size_t(std::distance(fs::directory_iterator(folder_), fs::directory_iterator())); }

  std::string folder_;
  const std::vector<uint8_t> bytes_ = std::vector<uint8_t>(100000, 42), old_ = {1, 2, 3};
};

TEST_F(SessionFileTest, IsWrittenWholeForItsOwnerAlone) {
  ASSERT_TRUE(write_file(path("a"), old_).ok());
  ASSERT_TRUE(write_file(path("a"), bytes_).ok());
  EXPECT_EQ(read_file(path("a")).value(), bytes_);
  EXPECT_EQ(n_files(), 1u);
  struct stat about {};
  ASSERT_EQ(stat(path("a").c_str(), &about), 0);
  EXPECT_EQ(about.st_mode & 0777, 0600u);
}

TEST_F(SessionFileTest, FollowsNoLink) {
  ASSERT_TRUE(write_file(path("target"), old_).ok());
  fs::create_symlink(path("target"), path("link"));
  EXPECT_FALSE(read_file(path("link")).ok());
  ASSERT_TRUE(write_file(path("link"), bytes_).ok());
  EXPECT_EQ(read_file(path("target")).value(), old_);
  EXPECT_FALSE(fs::is_symlink(path("link")));
}

TEST_F(SessionFileTest, BadPathsAreErrors) {
  EXPECT_FALSE(write_file(path("none/a"), bytes_).ok());
  EXPECT_FALSE(read_file(path("none")).ok());
  EXPECT_FALSE(read_file(folder_).ok());
  EXPECT_FALSE(read_file("/dev/zero").ok());
  ASSERT_TRUE(write_file(path("a"), bytes_).ok());
  EXPECT_FALSE(read_file(path("a"), 99999).ok());
  ASSERT_TRUE(fs::create_directory(path("folder")));
  EXPECT_FALSE(write_file(path("folder"), bytes_).ok());
  EXPECT_EQ(n_files(), 2u);
}

// As on a full disk: writing stops in the middle.
TEST_F(SessionFileTest, AFailedWriteLeavesWhatWasThere) {
  ASSERT_TRUE(write_file(path("a"), old_).ok());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  for (const rlim_t limit : {rlim_t{0}, rlim_t{1}, rlim_t{4096}, rlim_t{99999}}) {
    const rlimit small{limit, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    const Status status = write_file(path("a"), bytes_);
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    EXPECT_FALSE(status.ok()) << limit;
    EXPECT_EQ(read_file(path("a")).value(), old_);
    EXPECT_EQ(n_files(), 1u);
  }
  std::signal(SIGXFSZ, handler);
}

}  // namespace
}  // namespace mikv::test::session_test
