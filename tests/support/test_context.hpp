// Contexts in tests: a small engine that makes keys, values and queries from a sequence and a position, so that two
// contexts that were fed alike can be compared, and one that was restored can go on.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mikv/context.hpp"

namespace mikv::test {

inline constexpr LayerShape kSmallShape{4, 2, 16, 16};

/// Infinite if they differ in length.
double largest_difference(const std::vector<float>& a, const std::vector<float>& b);

/// An engine of few layers, driven by hand.
class SmallEngine {
 public:
  struct Setup {
    std::string spec = "mikv";
    int n_layers = 2;
    uint32_t n_sequences = 4;
    bool unified = false;
    uint32_t n_cells = 2048;
    uint32_t n_ubatch = 64;
    uint32_t n_at_once = 0;  ///< tokens that pass through the layers at once; 0: all of a step
    uint32_t n_threads = 1;
    uint32_t window = 0;  ///< of the second layer
    uint64_t fingerprint = 7;
    uint64_t budget = 0;
    Position punctuation_every = 0;  ///< every so many positions a token is punctuation; 0: none is
    std::shared_ptr<MemoryAccount> account = nullptr;
  };
  SmallEngine() : SmallEngine(Setup{}) {}
  explicit SmallEngine(const Setup& setup);

  /// n tokens that follow what the sequence holds; the last one wants logits. In steps of n_ubatch tokens.
  Status prompt(SequenceId sequence, uint32_t n);
  /// One generated token.
  Status generate(SequenceId sequence) { return prompt(sequence, 1); }
  /// One step of several sequences.
  enum class Outputs { none, last, all };  ///< which tokens want logits; all: a draft, or a text to be measured
  struct Part {
    SequenceId sequence;
    uint32_t n;
    Outputs outputs = Outputs::last;
  };
  Status step(const std::vector<Part>& parts);

  /// Outputs of the last step: [layer][token][head][channel].
  const std::vector<float>& output() const { return output_; }
  /// What a generated token of the sequence would put out, without keeping it.
  std::vector<float> peek(SequenceId sequence);

  Context& cache() { return *cache_; }
  uint64_t bytes() const { return cache_->memory_usage().total(); }
  const std::vector<std::string>& log() const { return *log_; }

 private:
  std::vector<uint32_t> split(Batch& batch) const;

  Setup setup_;
  std::shared_ptr<std::vector<std::string>> log_ = std::make_shared<std::vector<std::string>>();
  std::unique_ptr<Context> cache_;
  std::vector<float> output_;
};

/// Tests of split contexts (false) and unified ones (true).
class BothKinds : public testing::TestWithParam<bool> {
 protected:
  SmallEngine::Setup wish(const char* spec = "mikv") const {
    SmallEngine::Setup wish;
    wish.spec = spec;
    wish.unified = GetParam();
    return wish;
  }
};
inline std::string kind_name(const testing::TestParamInfo<bool>& info) { return info.param ? "Unified" : "Split"; }

}  // namespace mikv::test
