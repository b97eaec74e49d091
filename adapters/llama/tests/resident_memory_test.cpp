// The bytes that mikv reports are bytes that the process saves, at rest and at its peak: memory of whole processes.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "engine/engine.hpp"

namespace mikv::llama::resident_memory_test {
namespace {

constexpr uint32_t kTokens = 2048;

struct Measured {
  uint64_t anonymous_bytes = 0;  ///< RssAnon: what the process itself allocated and touched, without the mapped model
  uint64_t peak_bytes = 0;       ///< VmHWM: the most that was resident at any time, the model included
  uint64_t kv_bytes = 0;
};

/// A line of /proc/self/status, in bytes.
uint64_t memory_status(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":")) return std::stoull(line.substr(name.size() + 1)) * 1024;
  }
  return 0;
}

Measured run(const char* kv) {
  const auto model = Model::load(std::getenv("MIKV_TEST_MODEL")).value();
  const auto context =
      EngineContext::create(*model, KvChoice::parse(kv).value(), {.n_ctx = kTokens + 64, .n_threads = 2}).value();
  std::vector<Token> prompt;
  for (uint32_t i = 0; i < kTokens; ++i) prompt.push_back(Token(1000 + i * 7919 % 20000));
  if (!context->prefill(prompt).ok() || !context->end_prompt().ok() || !context->decode(prompt[0]).ok()) std::_Exit(1);
  return {memory_status("RssAnon"), memory_status("VmHWM"), context->memory_usage().total()};
}

// In a process of its own: what an earlier cache left in the heap must not hide what this one takes.
Measured run_in_child(const char* kv) {
  int channel[2];
  EXPECT_EQ(pipe(channel), 0);
  const pid_t child = fork();
  if (child == 0) {
    const Measured measured = run(kv);
    const bool sent = write(channel[1], &measured, sizeof measured) == sizeof measured;
    std::_Exit(sent ? 0 : 1);
  }
  Measured measured;
  EXPECT_EQ(read(channel[0], &measured, sizeof measured), ssize_t(sizeof measured));
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  close(channel[0]);
  close(channel[1]);
  return measured;
}

TEST(ResidentMemory, ShrinksByTheBytesReported) {
  ASSERT_NE(std::getenv("MIKV_TEST_MODEL"), nullptr) << "MIKV_TEST_MODEL must name a GGUF file";
  const Measured full = run_in_child("full"), mikv = run_in_child("mikv"), stock = run_in_child("llama:f16");
  const double reported = double(full.kv_bytes) - double(mikv.kv_bytes);
  const double saved = double(full.anonymous_bytes) - double(mikv.anonymous_bytes);
  std::printf("anonymous memory: stock f16 %.1f MiB, full %.1f MiB, mikv %.1f MiB; saved %.1f MiB, reported %.1f MiB\n",
              double(stock.anonymous_bytes) / 0x1p20, double(full.anonymous_bytes) / 0x1p20,
              double(mikv.anonymous_bytes) / 0x1p20, saved / 0x1p20, reported / 0x1p20);
  // Scratch memory and what the heap keeps for reuse: a tenth.
  EXPECT_NEAR(saved, reported, 0.1 * reported);
  // llama.cpp's own cache pages stay untouched: with them `full` would need the f16 cache twice.
  EXPECT_LT(double(full.anonymous_bytes), double(stock.anonymous_bytes) + 0.5 * double(full.kv_bytes));
}

// The prompt is never there in f16: what the process takes beyond model and buffers stays near the compressed cache's
// size.
TEST(ResidentMemory, StreamingPrefillPeak) {
  ASSERT_NE(std::getenv("MIKV_TEST_MODEL"), nullptr) << "MIKV_TEST_MODEL must name a GGUF file";
  const Measured full = run_in_child("full"), streaming = run_in_child("mikv:prefill=streaming"),
                 exact = run_in_child("mikv");
  const double model_and_buffers = double(full.peak_bytes) - double(full.kv_bytes);
  const auto share = [&](const Measured& arm) {
    return (double(arm.peak_bytes) - model_and_buffers) / double(full.kv_bytes);
  };
  std::printf("peak above model and buffers, of the f16 cache: streaming %.0f %%, exact %.0f %%; at rest %.0f %%\n",
              100.0 * share(streaming), 100.0 * share(exact),
              100.0 * double(streaming.kv_bytes) / double(full.kv_bytes));
  // The cache at rest is a quarter; scratch memory that does not grow with the context is a fifth of so small a cache.
  EXPECT_LT(share(streaming), 0.6);
  EXPECT_GT(share(exact), 0.9) << "the measure does not see a prompt held in f16";
}

}  // namespace
}  // namespace mikv::llama::resident_memory_test
