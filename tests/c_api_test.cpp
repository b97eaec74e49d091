// mikv.h: the same context through the C API, what it refuses, and what programs that were compiled earlier rely on.
#include "mikv/mikv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "test_context.hpp"

namespace mikv::test::c_api_test {
namespace {

constexpr uint32_t kRow = 32, kQueryRow = 64;

struct Free {
  void operator()(mikv_context* context) const { mikv_context_free(context); }
};
using Handle = std::unique_ptr<mikv_context, Free>;

Handle make(const char* spec, int unified = 0, mikv_log log = nullptr, void* data = nullptr,
            const mikv_threads* threads = nullptr) {
  mikv_context_options options;
  mikv_context_options_init(&options);
  options.spec = spec;
  options.n_sequences = 3;
  options.n_cells = 2048;
  options.n_threads = 2;
  options.unified = unified;
  options.model = "a small model";
  options.fingerprint = 7;
  options.log = log;
  options.log_data = data;
  options.threads = threads;
  mikv_context* context = nullptr;
  EXPECT_EQ(mikv_context_create(&options, &context), MIKV_OK) << mikv_last_error_message();
  Handle handle(context);
  const mikv_layer_shape shape = {4, 2, 16, 16};
  EXPECT_EQ(mikv_context_add_layer(context, 0, &shape, 0), MIKV_OK);
  const float angles[8] = {1.0f, 0.5f, 0.25f, 0.1f, 0.05f, 0.02f, 0.01f, 0.005f};
  EXPECT_EQ(mikv_context_set_rope(context, 0, angles, 8, 0), MIKV_OK);
  return handle;
}

std::vector<float> rows(int kind, int32_t first, size_t n, uint32_t width) {
  std::vector<float> data;
  for (size_t i = 0; i < n * width; ++i) {
    data.push_back(std::sin(float(kind) + 0.37f * float(first) * float(width) + 0.37f * float(i)));
  }
  return data;
}

// n tokens that follow what the sequence holds; the outputs.
mikv_error feed(mikv_context* context, int32_t sequence, size_t n, std::vector<float>* out = nullptr,
                uint32_t n_threads = 1) {
  const int32_t first = mikv_context_last_position(context, sequence) + 1;
  std::vector<mikv_token> tokens;
  for (size_t i = 0; i < n; ++i) tokens.push_back({sequence, first + int32_t(i), i + 1 == n});
  if (const mikv_error error = mikv_context_begin_step(context, tokens.data(), n, nullptr, 0)) return error;
  const auto k = rows(1, first, n, kRow), v = rows(2, first, n, kRow), q = rows(3, first, n, kQueryRow);
  std::vector<float> result(n * kQueryRow);
  (void)mikv_context_store(context, 0, n, k.data(), kRow, v.data(), kRow);
  mikv_attend_args args;
  mikv_attend_args_init(&args);
  args.q = q.data();
  args.out = result.data();
  args.q_token_stride = args.out_token_stride = kQueryRow;
  args.q_head_stride = args.out_head_stride = 16;
  args.n_tokens = uint32_t(n);
  args.sequence = uint32_t(sequence);
  args.scale = 0.25f;
  if (n_threads == 0) {  // those of the options
    (void)mikv_context_attend_all(context, 0, &args, 1);
    if (out) *out = result;
    return mikv_context_end_step(context, 1);
  }
  std::vector<std::thread> helpers;
  for (uint32_t t = 1; t < n_threads; ++t) {
    helpers.emplace_back([&, t] { (void)mikv_context_attend(context, 0, &args, 1, t, n_threads); });
  }
  (void)mikv_context_attend(context, 0, &args, 1, 0, n_threads);
  for (std::thread& helper : helpers) helper.join();
  if (out) *out = result;
  return mikv_context_end_step(context, 1);
}

mikv_memory_usage usage_of(const mikv_context* context) {
  mikv_memory_usage usage;
  mikv_memory_usage_init(&usage);
  EXPECT_EQ(mikv_context_memory_usage(context, &usage), MIKV_OK);
  return usage;
}

TEST(CApiTest, VersionsAndNamesAreThere) {
  EXPECT_STREQ(mikv_version(), MIKV_VERSION_STRING);
  EXPECT_STREQ(mikv_error_name(MIKV_OVER_BUDGET), "over_budget");
  EXPECT_STREQ(mikv_error_name(mikv_error(99)), "unknown");
}

TEST(CApiTest, SpecsAreCheckedWithAMessage) {
  EXPECT_EQ(mikv_check_spec("mikv:keep=0.2"), MIKV_OK);
  EXPECT_EQ(mikv_check_spec("nonsense"), MIKV_INVALID_ARGUMENT);
  EXPECT_NE(std::string(mikv_last_error_message()).find("nonsense"), std::string::npos);
  EXPECT_EQ(mikv_check_spec(nullptr), MIKV_INVALID_ARGUMENT);
}

TEST(CApiTest, ItGivesWhatTheCppApiGives) {
  for (const int unified : {0, 1}) {
    const Handle c = make("mikv", unified);
    ContextOptions options;
    options.spec = Spec::parse("mikv").value();
    options.n_sequences = 3;
    options.n_cells = 2048;
    options.n_threads = 2;
    options.unified = unified;
    const auto cpp = Context::create(options).value();
    ASSERT_TRUE(cpp->add_layer(0, kSmallShape).ok());
    ASSERT_TRUE(cpp->set_rope(0, {{1.0f, 0.5f, 0.25f, 0.1f, 0.05f, 0.02f, 0.01f, 0.005f}, false}).ok());
    std::vector<float> from_c;
    for (const size_t n : {size_t{300}, size_t{1}, size_t{1}}) {
      const Position first = cpp->last_position(0) + 1;
      ASSERT_EQ(feed(c.get(), 0, n, &from_c), MIKV_OK) << mikv_last_error_message();
      Batch batch;
      for (size_t i = 0; i < n; ++i) batch.tokens.push_back({0, i + 1 == n, first + Position(i)});
      ASSERT_TRUE(cpp->begin_step(batch).ok());
      const auto k = rows(1, first, n, kRow), v = rows(2, first, n, kRow), q = rows(3, first, n, kQueryRow);
      std::vector<float> out(n * kQueryRow);
      ASSERT_TRUE(cpp->store(0, {}, k.data(), kRow, v.data(), kRow, uint32_t(n)).ok());
      AttendArgs args;
      args.q = q.data();
      args.out = out.data();
      args.q_token_stride = args.out_token_stride = kQueryRow;
      args.q_head_stride = args.out_head_stride = 16;
      args.n_tokens = uint32_t(n);
      args.scale = 0.25f;
      ASSERT_TRUE(cpp->attend(0, {&args, 1}).ok());
      ASSERT_TRUE(cpp->end_step().ok());
      EXPECT_EQ(from_c, out);
    }
    const mikv_memory_usage usage = usage_of(c.get());
    const MemoryUsage same = cpp->memory_usage();
    EXPECT_EQ(usage.total, same.total());
    EXPECT_EQ(usage.lo, same.lo);
    EXPECT_EQ(usage.n_elements, same.n_elements);
    EXPECT_EQ(usage.bits_per_element, same.bits_per_element());
    EXPECT_GE(usage.peak, usage.total);
    EXPECT_STREQ(mikv_context_spec(c.get()), cpp->spec().to_string().c_str());
  }
}

TEST(CApiTest, ThreadsShareOneCall) {
  const Handle one = make("mikv"), two = make("mikv");
  std::vector<float> a, b;
  ASSERT_EQ(feed(one.get(), 0, 300, &a, 1), MIKV_OK);
  ASSERT_EQ(feed(two.get(), 0, 300, &b, 2), MIKV_OK);
  EXPECT_EQ(a, b);
}

// An OpenMP of the engine's, which gives fewer threads than were asked for where it has no more.
thread_local int team_thread = 0, team_size = 1;
int n_given = 0, n_ran = 0;

void run_team(void (*body)(void* data), void* data, unsigned n_threads, unsigned) {
  const int n = std::min(int(n_threads), n_given);
  std::vector<std::thread> team;
  for (int t = 0; t < n; ++t) {
    team.emplace_back([=] {
      team_thread = t;
      team_size = n;
      body(data);
    });
  }
  for (std::thread& thread : team) thread.join();
  n_ran += n;
}

TEST(CApiTest, TheEnginesThreadsAreUsed) {
  const mikv_threads threads = {run_team, [] { return team_thread; }, [] { return team_size; }};
  std::vector<float> want, got;
  for (const int given : {1, 2, 5}) {
    n_given = given;
    n_ran = 0;
    const Handle own = make("mikv"), engines = make("mikv", 0, nullptr, nullptr, &threads);
    for (const size_t n : {size_t{300}, size_t{1}}) {
      ASSERT_EQ(feed(own.get(), 0, n, &want), MIKV_OK);
      ASSERT_EQ(feed(engines.get(), 0, n, &got, 0), MIKV_OK);
      EXPECT_EQ(want, got);
    }
    EXPECT_EQ(n_ran, 2 * std::min(given, 2));
  }
  const mikv_threads none = {run_team, nullptr, nullptr};
  mikv_context_options options;
  mikv_context_options_init(&options);
  options.threads = &none;
  mikv_context* context = nullptr;
  EXPECT_EQ(mikv_context_create(&options, &context), MIKV_INVALID_ARGUMENT);
}

TEST(CApiTest, SequencesAreRemovedCopiedKeptAndShifted) {
  const Handle context = make("mikv", 1);
  ASSERT_EQ(feed(context.get(), 0, 60), MIKV_OK);
  ASSERT_EQ(mikv_context_copy(context.get(), 0, 1, -1, -1), MIKV_OK);
  EXPECT_EQ(mikv_context_last_position(context.get(), 1), 59);
  ASSERT_EQ(mikv_context_remove(context.get(), 1, 30, -1), MIKV_OK);
  EXPECT_EQ(mikv_context_last_position(context.get(), 1), 29);
  ASSERT_EQ(mikv_context_keep(context.get(), 0), MIKV_OK);
  EXPECT_EQ(mikv_context_last_position(context.get(), 1), -1);
  ASSERT_EQ(mikv_context_remove(context.get(), 0, 0, 10), MIKV_OK);
  ASSERT_EQ(mikv_context_shift(context.get(), 0, 10, -1, -10), MIKV_OK);
  EXPECT_EQ(mikv_context_last_position(context.get(), 0), 49);
  EXPECT_EQ(mikv_context_remove(context.get(), 17, -1, -1), MIKV_INVALID_ARGUMENT);
  mikv_context_clear(context.get());
  EXPECT_EQ(mikv_context_last_position(context.get(), 0), -1);
  EXPECT_EQ(usage_of(context.get()).total, 0u);
}

TEST(CApiTest, StatesTravelAsBytesAndAsFiles) {
  const Handle from = make("mikv"), to = make("mikv");
  ASSERT_EQ(feed(from.get(), 1, 300), MIKV_OK);
  ASSERT_EQ(mikv_context_compress(from.get()), MIKV_OK);
  const int32_t tokens[] = {3, 1, 4};
  uint8_t* bytes = nullptr;
  size_t n_bytes = 0;
  ASSERT_EQ(mikv_context_save(from.get(), 1, tokens, 3, &bytes, &n_bytes), MIKV_OK);
  int32_t read[2] = {};
  size_t n_tokens = 0;
  ASSERT_EQ(mikv_saved_tokens(bytes, n_bytes, read, 2, &n_tokens), MIKV_OK);
  EXPECT_EQ(n_tokens, 3u);
  EXPECT_EQ(read[1], 1);
  ASSERT_EQ(mikv_context_load(to.get(), 1, bytes, n_bytes), MIKV_OK) << mikv_last_error_message();
  std::vector<float> a, b;
  ASSERT_EQ(feed(from.get(), 1, 1, &a), MIKV_OK);
  ASSERT_EQ(feed(to.get(), 1, 1, &b), MIKV_OK);
  EXPECT_EQ(a, b);

  bytes[n_bytes / 2] ^= 1;
  EXPECT_EQ(mikv_context_load(to.get(), 1, bytes, n_bytes), MIKV_DAMAGED_DATA);
  mikv_free(bytes);
  EXPECT_EQ(mikv_context_load(make("h2o").get(), 1, nullptr, 0), MIKV_DAMAGED_DATA);

  const std::string path = testing::TempDir() + "c_api_test.session";
  ASSERT_EQ(mikv_context_save_file(from.get(), 1, nullptr, 0, path.c_str()), MIKV_OK) << mikv_last_error_message();
  EXPECT_EQ(mikv_context_load_file(to.get(), 2, path.c_str()), MIKV_OK);
  EXPECT_EQ(mikv_context_last_position(to.get(), 2), 300);
  EXPECT_EQ(mikv_context_load_file(make("h2o").get(), 0, path.c_str()), MIKV_MISMATCH);
  std::remove(path.c_str());
  EXPECT_EQ(mikv_context_load_file(to.get(), 2, path.c_str()), MIKV_IO);
  EXPECT_EQ(mikv_context_save_file(from.get(), 1, nullptr, 0, "/nonexistent/file"), MIKV_IO);
}

TEST(CApiTest, ABudgetIsRefusedByCodeAndLogged) {
  std::vector<std::string> lines;
  const auto log = [](const char* line, void* data) { static_cast<std::vector<std::string>*>(data)->push_back(line); };
  const Handle context = make("mikv", 0, log, &lines);
  mikv_context_set_budget(context.get(), 8 << 10);
  EXPECT_EQ(feed(context.get(), 0, 400), MIKV_OVER_BUDGET);
  EXPECT_NE(std::string(mikv_last_error_message()).find("no room for 400 more tokens"), std::string::npos);
  EXPECT_FALSE(lines.empty());
}

TEST(CApiTest, AStepThatTheEngineGivesUpIsForgotten) {
  const Handle context = make("mikv");
  ASSERT_EQ(feed(context.get(), 0, 5), MIKV_OK);
  const mikv_token token = {0, 5, 1};
  ASSERT_EQ(mikv_context_begin_step(context.get(), &token, 1, nullptr, 0), MIKV_OK);
  mikv_context_fail(context.get(), "the user stopped it");
  EXPECT_EQ(mikv_context_end_step(context.get(), 0), MIKV_ENGINE);
  EXPECT_STREQ(mikv_last_error_message(), "the user stopped it");
  EXPECT_EQ(mikv_context_last_position(context.get(), 0), 4);
  EXPECT_EQ(feed(context.get(), 0, 1), MIKV_OK);
}

TEST(CApiTest, ACallThatCannotBeReadFailsItsStep) {
  const Handle context = make("full");
  ASSERT_EQ(feed(context.get(), 0, 4), MIKV_OK);
  const std::vector<float> row(kQueryRow, 1.0f);
  std::vector<float> out(kQueryRow);
  const mikv_token token = {0, 4, 1};
  for (const bool unknown_layer : {false, true}) {
    ASSERT_EQ(mikv_context_begin_step(context.get(), &token, 1, nullptr, 0), MIKV_OK);
    ASSERT_EQ(mikv_context_store(context.get(), 0, 1, row.data(), kRow, row.data(), kRow), MIKV_OK);
    mikv_attend_args args;
    mikv_attend_args_init(&args);
    args.q = row.data();
    args.out = out.data();
    args.n_tokens = 1;
    if (!unknown_layer) args.mask_type = mikv_mask_type(3);
    EXPECT_EQ(mikv_context_attend(context.get(), unknown_layer ? 9 : 0, &args, 1, 0, 1), MIKV_INVALID_ARGUMENT);
    const std::string why = mikv_last_error_message();
    EXPECT_NE(why.find(unknown_layer ? "layer 9" : "mask_type 3"), std::string::npos) << why;
    EXPECT_EQ(mikv_context_end_step(context.get(), 1), MIKV_INVALID_ARGUMENT);
    EXPECT_EQ(mikv_context_last_position(context.get(), 0), 3);
  }
  EXPECT_EQ(feed(context.get(), 0, 1), MIKV_OK);
}

TEST(CApiTest, NullIsAnErrorAndNeverACrash) {
  EXPECT_EQ(mikv_context_create(nullptr, nullptr), MIKV_INVALID_ARGUMENT);
  mikv_context* context = nullptr;
  EXPECT_EQ(mikv_context_create(nullptr, &context), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(context, nullptr);
  mikv_context_free(nullptr);
  mikv_free(nullptr);
  mikv_context_options_init(nullptr);
  mikv_attend_args_init(nullptr);
  mikv_tensor_call_init(nullptr);
  mikv_memory_usage_init(nullptr);
  EXPECT_EQ(mikv_context_add_layer(nullptr, 0, nullptr, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_set_rope(nullptr, 0, nullptr, 3, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_begin_step(nullptr, nullptr, 0, nullptr, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_store(nullptr, 0, 0, nullptr, 0, nullptr, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_attend(nullptr, 0, nullptr, 0, 0, 1), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_end_step(nullptr, 1), MIKV_INVALID_ARGUMENT);
  mikv_context_fail(nullptr, nullptr);
  EXPECT_EQ(mikv_context_remove(nullptr, 0, 0, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_copy(nullptr, 0, 1, 0, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_keep(nullptr, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_shift(nullptr, 0, 0, 0, 0), MIKV_INVALID_ARGUMENT);
  mikv_context_clear(nullptr);
  EXPECT_EQ(mikv_context_last_position(nullptr, 0), -1);
  EXPECT_EQ(mikv_context_compress(nullptr), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_save(nullptr, 0, nullptr, 0, nullptr, nullptr), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_load(nullptr, 0, nullptr, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_saved_tokens(nullptr, 3, nullptr, 0, nullptr), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_save_file(nullptr, 0, nullptr, 0, nullptr), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_load_file(nullptr, 0, nullptr), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_memory_usage(nullptr, nullptr), MIKV_INVALID_ARGUMENT);
  mikv_context_set_budget(nullptr, 1);
  EXPECT_STREQ(mikv_context_spec(nullptr), "");
  EXPECT_EQ(mikv_context_attend_all(nullptr, 0, nullptr, 0), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_lowered(nullptr, nullptr, 0, nullptr), MIKV_INVALID_ARGUMENT);
  EXPECT_EQ(mikv_context_tokens(nullptr, 0, 0, 0, nullptr, 0, nullptr), MIKV_INVALID_ARGUMENT);
}

// A structure of an older header is shorter: what it lacks has its default, and nothing beyond it is touched.
TEST(CApiTest, ShorterStructuresOfOlderHeadersWork) {
  mikv_context_options options;
  mikv_context_options_init(&options);
  options.size = offsetof(mikv_context_options, n_ubatch);
  options.n_ubatch = 0;  // not the library's business
  mikv_context* context = nullptr;
  ASSERT_EQ(mikv_context_create(&options, &context), MIKV_OK) << mikv_last_error_message();
  const Handle handle(context);
  mikv_memory_usage usage;
  std::memset(&usage, 0xab, sizeof usage);
  usage.size = offsetof(mikv_memory_usage, hi);
  ASSERT_EQ(mikv_context_memory_usage(context, &usage), MIKV_OK);
  EXPECT_EQ(usage.total, 0u);
  EXPECT_EQ(usage.hi, 0xababababababababu);
  options.size = 0;
  EXPECT_EQ(mikv_context_create(&options, &context), MIKV_INVALID_ARGUMENT);
}

}  // namespace
}  // namespace mikv::test::c_api_test
