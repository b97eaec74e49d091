// llama.cpp's sequence operations on a real model: `full` must do as stock llama.cpp does after any of them; tiers must
// be forgotten, shared, copied, shifted, saved and loaded with their cells.
#include <gtest/gtest.h>

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "binding.hpp"
#include "kv_context.hpp"
#include "llama.h"
#include "mikv/mikv.hpp"
#include "interpose/registry.hpp"
#include "state/stock_prompt.hpp"

namespace mikv::llama {
namespace {

struct ModelDeleter {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};
using ModelHandle = std::unique_ptr<llama_model, ModelDeleter>;
using ContextHandle = std::unique_ptr<llama_context, ContextDeleter>;

constexpr uint32_t kSequences = 4;

class SequenceOperations : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* path = std::getenv("MIKV_TEST_MODEL");
    ASSERT_NE(path, nullptr) << "MIKV_TEST_MODEL must name a GGUF file; `mikv model path smollm2-135m` prints one";
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    llama_backend_init();
    model_.reset(llama_model_load_from_file(path, llama_model_default_params()));
    ASSERT_NE(model_, nullptr);
  }
  static void TearDownTestSuite() { model_.reset(); }

  static llama_context_params params(bool unified, uint32_t n_ctx = 2048) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = n_ctx;
    params.n_batch = params.n_ubatch = 512;
    params.n_seq_max = kSequences;
    params.kv_unified = unified;
    params.n_threads = params.n_threads_batch = 2;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return params;
  }
  static ContextHandle stock(bool unified) {
    return ContextHandle(llama_init_from_model(model_.get(), params(unified)));
  }
  static ContextHandle ours(const char* spec, bool unified, AttentionBy attention_by = AttentionBy::mikv,
                            uint32_t n_ctx = 2048) {
    auto context = init_context(model_.get(), params(unified, n_ctx), Spec::parse(spec).value(), attention_by);
    EXPECT_TRUE(context.ok()) << context.message();
    return ContextHandle(context.value());
  }

  /// Appends tokens to a sequence; logits after the last one.
  static std::vector<float> feed(llama_context* context, llama_seq_id sequence,
                                 const std::vector<llama_token>& tokens) {
    llama_batch batch = llama_batch_init(int32_t(tokens.size()), 0, 1);
    llama_pos position = llama_memory_seq_pos_max(llama_get_memory(context), sequence) + 1;
    for (size_t i = 0; i < tokens.size(); ++i) {
      batch.token[i] = tokens[i];
      batch.pos[i] = position++;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = sequence;
      batch.logits[i] = i + 1 == tokens.size();
    }
    batch.n_tokens = int32_t(tokens.size());
    const int32_t code = llama_decode(context, batch);
    llama_batch_free(batch);
    EXPECT_EQ(code, 0) << status(context).message();
    if (code != 0) return {};
    const float* logits = llama_get_logits_ith(context, -1);
    return {logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model_.get()))};
  }

  static std::vector<llama_token> words(std::mt19937& random, size_t n) {
    // Common words, so that the model is about as sure of what follows as in a text.
    std::uniform_int_distribution<llama_token> any(260, 2000);
    std::vector<llama_token> tokens(n);
    for (llama_token& token : tokens) token = any(random);
    return tokens;
  }

  static double rms(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) sum += std::pow(double(a[i]) - b[i], 2);
    return std::sqrt(sum / double(a.size()));
  }
  static double divergence(const std::vector<float>& of, const std::vector<float>& from) {
    const auto log_sum = [](const std::vector<float>& x) {
      const double most = *std::max_element(x.begin(), x.end());
      double sum = 0.0;
      for (const float v : x) sum += std::exp(v - most);
      return most + std::log(sum);
    };
    const double a = log_sum(of), b = log_sum(from);
    double sum = 0.0;
    for (size_t i = 0; i < of.size(); ++i) sum += std::exp(of[i] - a) * ((of[i] - a) - (from[i] - b));
    return sum;
  }

  static ModelHandle model_;
};
ModelHandle SequenceOperations::model_;

/// Does the same to a stock context and to one of ours.
class Pair {
 public:
  Pair(ContextHandle stock, ContextHandle ours) : contexts_{std::move(stock), std::move(ours)} {}
  llama_context* stock() { return contexts_[0].get(); }
  llama_context* ours() { return contexts_[1].get(); }
  template <typename Work>
  void both(Work work) {
    for (ContextHandle& context : contexts_) work(llama_get_memory(context.get()));
  }
  llama_pos end(llama_seq_id sequence) { return llama_memory_seq_pos_max(llama_get_memory(stock()), sequence) + 1; }

 private:
  ContextHandle contexts_[2];
};

std::string save(llama_context* context, llama_seq_id sequence) {
  std::string bytes(llama_state_seq_get_size(context, sequence), '\0');
  EXPECT_EQ(llama_state_seq_get_data(context, reinterpret_cast<uint8_t*>(bytes.data()), bytes.size(), sequence),
            bytes.size());
  return bytes;
}

// Weights meet activations rounded to 8 bits, so that two right attentions differ by .1 to 1 rms in logits that vary
// by 3 (full_equals_stock_test.cpp). A token too many, too few or at the wrong place shows as more than this.
constexpr double kSameLogits = 1.5;

class AnyOperations : public SequenceOperations,
                      public testing::WithParamInterface<std::tuple<bool, int, AttentionBy>> {};

TEST_P(AnyOperations, FullDoesAsStockDoes) {
  const auto [unified, seed, attention_by] = GetParam();
  std::mt19937 random(unsigned(seed) + 77);
  const auto below = [&](uint32_t n) { return std::uniform_int_distribution<uint32_t>(0, n - 1)(random); };
  Pair pair(stock(unified), ours("full", unified, attention_by));
  double worst = 0.0;
  std::string script;
  for (int step = 0; step < 60; ++step) {
    const llama_seq_id s = llama_seq_id(below(kSequences)),
                       other = llama_seq_id((uint32_t(s) + 1 + below(kSequences - 1)) % kSequences);
    const llama_pos end = pair.end(s), p0 = end ? llama_pos(below(uint32_t(end))) : 0;
    switch (below(9)) {
      case 0:
        script += " rm-tail";
        pair.both([&](llama_memory_t m) { llama_memory_seq_rm(m, s, p0, -1); });
        break;
      case 1:
        script += " rm-middle";
        pair.both([&](llama_memory_t m) { llama_memory_seq_rm(m, s, p0, p0 + 5); });
        break;
      case 2:
        script += " rm-all";
        pair.both([&](llama_memory_t m) { llama_memory_seq_rm(m, s, -1, -1); });
        break;
      case 3:
        script += " cp";
        pair.both([&](llama_memory_t m) {
          llama_memory_seq_rm(m, other, -1, -1);
          llama_memory_seq_cp(m, s, other, -1, -1);
        });
        break;
      case 4:
        if (step % 5) break;
        script += " keep";
        pair.both([&](llama_memory_t m) { llama_memory_seq_keep(m, s); });
        break;
      case 5: {
        script += " shift";
        // As a context shift does it. A cell has one position, so that one that is shared cannot be moved for one
        // alone.
        pair.both([&](llama_memory_t m) {
          llama_memory_seq_keep(m, s);
          llama_memory_seq_rm(m, s, 2, 2 + end / 3);
          llama_memory_seq_add(m, s, 2 + end / 3, -1, -(end / 3));
        });
        break;
      }
      case 6: {
        if (end == 0) break;
        script += " save-load";
        const std::string stock_bytes = save(pair.stock(), s), bytes = save(pair.ours(), s);
        ASSERT_EQ(llama_state_seq_set_data(pair.stock(), reinterpret_cast<const uint8_t*>(stock_bytes.data()),
                                           stock_bytes.size(), other),
                  stock_bytes.size());
        ASSERT_EQ(
            llama_state_seq_set_data(pair.ours(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), other),
            bytes.size());
        break;
      }
      default: break;
    }
    // Room for it: two thousand cells for all.
    if (pair.end(s) > 300) pair.both([&](llama_memory_t m) { llama_memory_seq_rm(m, s, -1, -1); });
    const auto tokens = words(random, 1 + (below(3) ? below(20) : 0));
    const auto expected = feed(pair.stock(), s, tokens), got = feed(pair.ours(), s, tokens);
    ASSERT_FALSE(got.empty()) << script;
    const double difference = rms(expected, got);
    worst = std::max(worst, difference);
    if (attention_by == AttentionBy::engine) {
      ASSERT_TRUE(expected == got) << "step " << step << " of " << tokens.size() << " tokens, rms difference "
                                   << difference << ":" << script;
    } else {
      ASSERT_LT(difference, kSameLogits) << "step " << step << ":" << script;
    }
    script += " feed";
  }
  RecordProperty("worst_rms", std::to_string(worst));
}

INSTANTIATE_TEST_SUITE_P(Caches, AnyOperations,
                         testing::Combine(testing::Bool(), testing::Values(1, 2, 3),
                                          testing::Values(AttentionBy::mikv, AttentionBy::engine)),
                         [](const auto& parameter) {
                           return std::string(std::get<0>(parameter.param) ? "Unified" : "Split") +
                                  std::to_string(std::get<1>(parameter.param)) +
                                  (std::get<2>(parameter.param) == AttentionBy::engine ? "Engine" : "");
                         });

class Tiers : public SequenceOperations, public testing::WithParamInterface<bool> {};

TEST_P(Tiers, CellsThatAreFreedAreForgotten) {
  std::mt19937 random(5);
  const auto context = ours("mikv", GetParam());
  const llama_memory_t memory = llama_get_memory(context.get());
  feed(context.get(), 0, words(random, 300));
  feed(context.get(), 1, words(random, 100));
  for (int i = 0; i < 3; ++i) feed(context.get(), 0, words(random, 1));
  const uint64_t before = memory_usage(context.get()).n_elements;
  llama_memory_seq_rm(memory, 0, 50, -1);
  feed(context.get(), 1, words(random, 1));
  EXPECT_EQ(memory_usage(context.get()).n_elements, before / 403 * 151);
  llama_memory_seq_rm(memory, 0, -1, -1);
  llama_memory_seq_rm(memory, 1, -1, -1);
  feed(context.get(), 2, words(random, 1));
  EXPECT_EQ(memory_usage(context.get()).n_elements, before / 403);
}

// A request for one token, say: the step that would generate from its prompt never comes.
TEST_P(Tiers, APromptThatNobodyGoesOnWithIsCompressed) {
  std::mt19937 random(13);
  const auto context = ours("mikv", GetParam());
  feed(context.get(), 0, words(random, 300));
  EXPECT_EQ(memory_usage(context.get()).n_lo_tokens, 0u);
  feed(context.get(), 1, words(random, 5));
  const MemoryUsage usage = memory_usage(context.get());
  EXPECT_EQ(usage.n_staged_tokens * 300, (usage.n_hi_tokens + usage.n_lo_tokens) * 5);
}

// What a sequence has reserved for tokens to come it gives back as soon as others go on without it.
TEST_P(Tiers, ASequenceThatRestsHasNoReserves) {
  std::mt19937 random(14);
  const auto context = ours("mikv", GetParam());
  feed(context.get(), 0, words(random, 300));
  for (int i = 0; i < 5; ++i) feed(context.get(), 0, words(random, 1));
  const MemoryUsage active = memory_usage(context.get());
  feed(context.get(), 1, words(random, 1));
  const MemoryUsage resting = memory_usage(context.get());
  // Each head had a block of 16 places for the next token. The other sequence has one now, of which one place is used.
  EXPECT_LT(resting.slack, active.slack);
  EXPECT_EQ(resting.n_hi_tokens, active.n_hi_tokens);
  EXPECT_EQ(resting.n_lo_tokens, active.n_lo_tokens);
}

// Whichever way a prompt comes to be compressed, its layers have bits by the weight of their heads' errors, and as many
// as the spec says all in all.
TEST_P(Tiers, LayersShareBits) {
  const auto lo_bits = [](llama_context* context) {
    std::vector<double> bits;
    for (const auto& [index, layer] : Registry::get().of_context(context)->layers()) {
      const MemoryUsage usage = layer.cache->memory_usage();
      const double elements =
          double(usage.n_lo_tokens) * (layer.cache->shape().head_dim_k + layer.cache->shape().head_dim_v);
      bits.push_back(8.0 * double(usage.lo) / elements + 0.25);  // ids of 2 bytes, two scales of 1
    }
    return bits;
  };
  const auto expect_shared = [&](llama_context* context, const char* how) {
    const std::vector<double> bits = lo_bits(context);
    const double wanted = Registry::get().of_context(context)->spec().bits;
    EXPECT_NEAR(std::accumulate(bits.begin(), bits.end(), 0.0) / double(bits.size()), wanted, 0.01) << how;
    const auto [least, most] = std::minmax_element(bits.begin(), bits.end());
    EXPECT_GT(*most - *least, 0.3) << how;
  };
  std::mt19937 random(14);
  const auto prompt = words(random, 300);
  for (const char* how : {"generation", "neighbour", "end_prompt", "streaming"}) {
    const bool streaming = how == std::string("streaming");
    if (streaming && !GetParam()) continue;  // a sequence of a split cache has no room for a prompt that long
    const auto context = ours(streaming ? "mikv:prefill=streaming" : "mikv", GetParam());
    for (int chunk = 0; chunk < (streaming ? 4 : 1); ++chunk) feed(context.get(), 0, prompt);
    if (how == std::string("generation")) feed(context.get(), 0, {prompt[0]});
    if (how == std::string("neighbour")) feed(context.get(), 1, {prompt[0]});
    if (how == std::string("end_prompt")) {
      EXPECT_TRUE(end_prompt(context.get()).ok());
    }
    expect_shared(context.get(), how);
  }
}

// Each sequence has its own budget and its own segment: what it computes does not depend on its neighbours.
TEST_P(Tiers, ALongNeighbourDoesNotChangeAShortSequence) {
  std::vector<std::vector<float>> logits;
  for (const size_t n_neighbour : {size_t{0}, size_t{400}}) {
    std::mt19937 random(6);
    const auto context = ours("mikv:keep=0.2", GetParam());
    const auto prompt = words(random, 300), more = words(random, 12), neighbour = words(random, 400);
    feed(context.get(), 0, prompt);
    for (size_t i = 0; i < n_neighbour; i += 200) {
      feed(context.get(), 1, {neighbour.begin() + long(i), neighbour.begin() + long(i) + 200});
    }
    if (n_neighbour) feed(context.get(), 1, {neighbour[0]});
    for (const llama_token token : more) logits.push_back(feed(context.get(), 0, {token}));
  }
  const size_t n = logits.size() / 2;
  // Equal but for how the work of attention is cut (masks differ in length).
  for (size_t i = 0; i < n; ++i) EXPECT_LT(rms(logits[i], logits[n + i]), 0.35) << i;
}

TEST_P(Tiers, ASavedSequenceGoesOnToTheBit) {
  std::mt19937 random(7);
  const auto context = ours("mikv", GetParam()), other = ours("mikv", GetParam());
  feed(context.get(), 1, words(random, 300));
  for (int i = 0; i < 5; ++i) feed(context.get(), 1, words(random, 1));
  const std::string bytes = save(context.get(), 1);
  EXPECT_LT(double(bytes.size()), 1.3 * double(memory_usage(context.get()).total()));
  ASSERT_EQ(llama_state_seq_set_data(other.get(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 1),
            bytes.size());
  for (int i = 0; i < 8; ++i) {
    const auto token = words(random, 1);
    EXPECT_EQ(feed(context.get(), 1, token), feed(other.get(), 1, token)) << i;
  }
}

TEST_P(Tiers, ABadStateIsRefusedAndChangesNothing) {
  std::mt19937 random(8);
  const auto context = ours("mikv", GetParam()), untouched = ours("mikv", GetParam());
  const auto prompt = words(random, 300);
  for (llama_context* c : {context.get(), untouched.get()}) {
    feed(c, 0, prompt);
    feed(c, 0, {prompt[0]});
  }
  const std::string good = save(context.get(), 0);
  const auto refused = [&](const std::string& bytes) {
    return llama_state_seq_set_data(context.get(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 0) ==
           0;
  };
  for (size_t i = 0; i < good.size(); i += 1 + good.size() / 97) {
    std::string bad = good;
    bad[i] = char(bad[i] ^ 0x40);
    EXPECT_TRUE(refused(bad)) << i;
    EXPECT_TRUE(refused(good.substr(0, i))) << i;
  }
  const auto another = ours("mikv-max", GetParam());
  feed(another.get(), 0, prompt);
  EXPECT_TRUE(refused(save(another.get(), 0)));
  const auto stock_context = stock(GetParam());
  feed(stock_context.get(), 0, prompt);
  EXPECT_TRUE(refused(save(stock_context.get(), 0)));
  for (int i = 0; i < 3; ++i) {
    const auto token = words(random, 1);
    EXPECT_EQ(feed(context.get(), 0, token), feed(untouched.get(), 0, token)) << i;
  }
}

TEST_P(Tiers, SessionFiles) {
  std::mt19937 random(9);
  const std::string path = "/tmp/mikv-session-test-" + std::to_string(getpid());
  const auto context = ours("mikv", GetParam()), other = ours("mikv", GetParam());
  const auto prompt = words(random, 300);
  feed(context.get(), 2, prompt);
  EXPECT_GT(llama_state_seq_save_file(context.get(), path.c_str(), 2, prompt.data(), prompt.size()), 0u);
  std::vector<llama_token> tokens(400);
  size_t n = 0;
  EXPECT_GT(llama_state_seq_load_file(other.get(), path.c_str(), 2, nullptr, 0, &n), 0u);
  EXPECT_EQ(n, prompt.size());
  EXPECT_EQ(llama_state_seq_load_file(other.get(), path.c_str(), 2, tokens.data(), 10, &n), 0u);
  EXPECT_GT(llama_state_seq_load_file(other.get(), path.c_str(), 2, tokens.data(), tokens.size(), &n), 0u);
  tokens.resize(n);
  EXPECT_EQ(tokens, prompt);
  const auto token = words(random, 1);
  EXPECT_EQ(feed(context.get(), 2, token), feed(other.get(), 2, token));

  EXPECT_TRUE(llama_state_save_file(context.get(), path.c_str(), prompt.data(), prompt.size()));
  tokens.resize(400);
  EXPECT_TRUE(llama_state_load_file(other.get(), path.c_str(), tokens.data(), tokens.size(), &n));
  EXPECT_EQ(feed(context.get(), 2, token), feed(other.get(), 2, token));
  EXPECT_FALSE(llama_state_load_file(other.get(), "/nonexistent/session", tokens.data(), tokens.size(), &n));
  std::filesystem::remove(path);
}

// A prefix that two sequences share is stored once. Either one's tokens demote only tokens of its own segment; the
// prefix's segment is that of the sequence that read it, whose own progress may demote in it: its reader sees that
// (docs/reliability.md).
TEST_F(SequenceOperations, ASharedPrefixIsStoredOnce) {
  std::mt19937 random(10);
  const auto context = ours("mikv", true);
  const llama_memory_t memory = llama_get_memory(context.get());
  const auto prefix = words(random, 300);
  feed(context.get(), 0, prefix);
  feed(context.get(), 0, words(random, 1));
  const uint64_t elements = memory_usage(context.get()).n_elements;
  for (llama_seq_id s = 1; s < 4; ++s) llama_memory_seq_cp(memory, 0, s, -1, -1);
  EXPECT_EQ(memory_usage(context.get()).n_elements, elements);
  for (llama_seq_id s = 1; s < 4; ++s) feed(context.get(), s, words(random, 20));
  EXPECT_EQ(memory_usage(context.get()).n_elements, elements / 301 * 361);
  // Sequence 0 goes; the others still read its prefix.
  const auto token = words(random, 1);
  llama_memory_seq_rm(memory, 0, -1, -1);
  EXPECT_FALSE(feed(context.get(), 1, token).empty());
  EXPECT_EQ(memory_usage(context.get()).n_elements, elements / 301 * 362);
}

// A prompt that is compressed as it is read goes on in another segment after 2,048 tokens (docs/adr/0014); nobody else
// can tell.
TEST_F(SequenceOperations, ALongPromptHasSeveralSegments) {
  std::mt19937 random(15);
  const auto make = [](const char* spec) { return ours(spec, true, AttentionBy::mikv, 4096); };
  const auto context = make("mikv:prefill=streaming"), other = make("mikv:prefill=streaming"), full = make("full");
  const auto cells_by_segment = [&](llama_seq_id sequence) {
    Binding& binding = *Registry::get().of_context(context.get());
    std::vector<uint64_t> cells;
    for (const SegmentId segment : binding.sequences().seen_by(sequence))
      cells.push_back(binding.layers().begin()->second.cache->n_cells(segment));
    return cells;
  };
  const auto feed_both = [&](const std::vector<llama_token>& tokens) {
    return divergence(feed(full.get(), 0, tokens), feed(context.get(), 0, tokens));
  };
  const auto n_staged = [&] {
    Binding& binding = *Registry::get().of_context(context.get());
    return binding.layers().begin()->second.cache->n_staged(binding.sequences().own(0));
  };
  for (int chunk = 0; chunk < 3; ++chunk) feed_both(words(random, 512));
  EXPECT_EQ(n_staged(), 1536) << "half of the context may wait in f16";
  feed_both(words(random, 512));
  EXPECT_EQ(n_staged(), 0);
  feed_both(words(random, 512));
  EXPECT_EQ(n_staged(), 512);
  EXPECT_EQ(cells_by_segment(0), (std::vector<uint64_t>{2048, 512}));
  double sum = 0.0;
  for (int i = 0; i < 8; ++i) sum += feed_both(words(random, 1));
  EXPECT_LT(sum / 8, 0.1);
  feed_both(words(random, 200));  // too few for a segment
  EXPECT_EQ(cells_by_segment(0), (std::vector<uint64_t>{2048, 720}));

  const std::string bytes = save(context.get(), 0);
  ASSERT_EQ(llama_state_seq_set_data(other.get(), reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), 0),
            bytes.size());
  for (int i = 0; i < 4; ++i) {
    const auto token = words(random, 1);
    EXPECT_EQ(feed(context.get(), 0, token), feed(other.get(), 0, token)) << i;
    feed(full.get(), 0, token);
  }
  llama_memory_seq_cp(llama_get_memory(context.get()), 0, 1, -1, -1);
  feed(context.get(), 1, words(random, 20));
  EXPECT_EQ(cells_by_segment(0), (std::vector<uint64_t>{2048, 724}));
  EXPECT_EQ(cells_by_segment(1), (std::vector<uint64_t>{2048, 724, 20}));
  llama_memory_seq_rm(llama_get_memory(context.get()), 1, -1, -1);

  // Cut back, it goes on in the segment in which it then ends.
  for (llama_context* each : {context.get(), full.get()}) llama_memory_seq_rm(llama_get_memory(each), 0, 1500, -1);
  EXPECT_LT(feed_both(words(random, 300)), 0.3);
  EXPECT_EQ(cells_by_segment(0), (std::vector<uint64_t>{1800}));
}

// Rejected drafts are verified in one batch with logits for all, and taken back.
TEST_P(Tiers, RejectedDraftsLeaveNoTrace) {
  std::mt19937 random(11);
  const auto context = ours("mikv", GetParam()), plain = ours("mikv", GetParam());
  const auto prompt = words(random, 300);
  for (llama_context* c : {context.get(), plain.get()}) feed(c, 0, prompt);
  for (int round = 0; round < 6; ++round) {
    const auto token = words(random, 1);
    std::vector<llama_token> draft = token;
    for (const llama_token t : words(random, 4)) draft.push_back(t);
    llama_batch batch = llama_batch_init(8, 0, 1);
    const llama_pos begin = llama_memory_seq_pos_max(llama_get_memory(context.get()), 0) + 1;
    for (size_t i = 0; i < draft.size(); ++i) {
      batch.token[i] = draft[i];
      batch.pos[i] = begin + llama_pos(i);
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = 0;
      batch.logits[i] = true;
    }
    batch.n_tokens = int32_t(draft.size());
    ASSERT_EQ(llama_decode(context.get(), batch), 0);
    llama_batch_free(batch);
    ASSERT_TRUE(llama_memory_seq_rm(llama_get_memory(context.get()), 0, begin + 1, -1));
    feed(plain.get(), 0, token);
  }
  const auto token = words(random, 1);
  const auto a = feed(context.get(), 0, token), b = feed(plain.get(), 0, token);
  EXPECT_LT(rms(a, b), 0.35);
  EXPECT_EQ(memory_usage(context.get()).n_elements, memory_usage(plain.get()).n_elements);
}

INSTANTIATE_TEST_SUITE_P(Caches, Tiers, testing::Bool(),
                         [](const auto& p) { return std::string(p.param ? "Unified" : "Split"); });

// 100 shifts there and back: positions are where they were, so what differs is what shifting cost.
TEST_F(SequenceOperations, DriftOverAHundredShifts) {
  for (const auto& [spec, most] : {std::pair("full", 0.05), {"mikv-hq", 0.5}, {"mikv", 2.0}}) {
    std::mt19937 random(12);
    const auto shifted = ours(spec, false), plain = ours(spec, false);
    const auto prompt = words(random, 400);
    for (llama_context* c : {shifted.get(), plain.get()}) {
      feed(c, 0, prompt);
      feed(c, 0, {prompt[0]});
    }
    const llama_memory_t memory = llama_get_memory(shifted.get());
    double sum = 0.0;
    for (int i = 0; i < 100; ++i) {
      const llama_pos by = i % 2 ? -200 : 200;
      llama_memory_seq_add(memory, 0, 0, -1, by);
      llama_context* const apply = shifted.get();
      if (i % 10 == 9 || i < 2) {
        const auto token = words(random, 1);
        const auto a = feed(apply, 0, token);
        const auto b = feed(plain.get(), 0, token);
        if (i % 2) sum += divergence(b, a) / 10.0;
      } else {
        feed(apply, 1, {prompt[0]});  // any step applies the shift
        llama_memory_seq_rm(memory, 1, -1, -1);
      }
    }
    std::printf("[ drift    ] %s: mean KL divergence after 2 to 100 shifts %.4f\n", spec, sum);
    EXPECT_LT(sum, most) << spec;
  }
}

// A prompt that mikv read, in a context of llama.cpp: what of it does not depend on attention is what llama.cpp itself
// stores.
TEST_F(SequenceOperations, PromptGoesToStockContextsOfAnyType) {
  std::mt19937 random(13);
  const auto prompt = words(random, 300);
  const auto next = words(random, 1);
  const auto read = ours("mikv", false);
  feed(read.get(), 0, prompt);
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    SCOPED_TRACE(ggml_type_name(type));
    llama_context_params of_type = params(false);
    of_type.type_k = of_type.type_v = type;
    const ContextHandle by_itself(llama_init_from_model(model_.get(), of_type)),
        given(llama_init_from_model(model_.get(), of_type));
    feed(by_itself.get(), 0, prompt);
    feed(given.get(), 0, words(random, 20));  // forgotten
    const Status status = copy_prompt(read.get(), given.get(), type);
    ASSERT_TRUE(status.ok()) << status.message();

    const auto state = [](llama_context* context) {
      std::vector<uint8_t> bytes(llama_state_seq_get_size(context, 0));
      EXPECT_EQ(llama_state_seq_get_data(context, bytes.data(), bytes.size(), 0), bytes.size());
      return bytes;
    };
    const auto expected = state(by_itself.get()), got = state(given.get());
    ASSERT_EQ(got.size(), expected.size());
    // Magic, sequence, streams, cells; position, number of sequences and sequence of each; layout of V, layers; type
    // and size of rows.
    const LayerShape& shape = Registry::get().of_context(read.get())->find_layer(0)->cache->shape();
    const size_t k_row = ggml_row_size(type, shape.n_kv_heads * shape.head_dim_k),
                 v_row = ggml_row_size(type, shape.n_kv_heads * shape.head_dim_v);
    const size_t n_layers = Registry::get().of_context(read.get())->layers().size();
    const size_t k_begin = 16 + 12 * prompt.size() + 8 + 12,
                 v_begin = k_begin + n_layers * (prompt.size() * k_row + 12);
    EXPECT_TRUE(std::equal(got.begin(), got.begin() + long(k_begin), expected.begin()));
    for (const auto& [begin, row] : {std::pair{k_begin, k_row}, {v_begin, v_row}}) {
      size_t n_same = 0;
      for (size_t i = begin; i < begin + prompt.size() * row; ++i) n_same += got[i] == expected[i];
      // Rounding to f16 comes first here, so that a code on an edge may fall to the other side.
      EXPECT_GT(double(n_same) / double(prompt.size() * row), type == GGML_TYPE_F16 ? 0.999 : 0.96);
    }
    const auto a = feed(by_itself.get(), 0, next), b = feed(given.get(), 0, next);
    EXPECT_LT(divergence(a, b), type == GGML_TYPE_Q4_0 ? 0.5 : 0.05);
  }
}

TEST_F(SequenceOperations, CompressedPromptDoesNotGoToStockContexts) {
  std::mt19937 random(14);
  const auto read = ours("mikv", false), given = stock(false);
  feed(read.get(), 0, words(random, 400));
  ASSERT_TRUE(end_prompt(read.get()).ok());
  const Status status = copy_prompt(read.get(), given.get(), GGML_TYPE_F16);
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.message().find("compressed"), std::string::npos) << status.message();
  EXPECT_EQ(llama_memory_seq_pos_max(llama_get_memory(given.get()), 0), -1);
}

}  // namespace
}  // namespace mikv::llama
