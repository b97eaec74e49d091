// Reports: sums over contexts, and the file that follows them.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "mikv/report.hpp"
#include "report/process.hpp"
#include "test_context.hpp"

namespace mikv {
namespace {

using test::SmallEngine;

std::string content_of(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// Waits for the report's own thread.
bool comes_to_have(const std::string& path, const std::string& text) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::chrono::steady_clock::now() < end) {
    if (content_of(path).find(text) != std::string::npos) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

class ReportTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directory(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  Log log() {
    return [this](const std::string& line) {
      const std::lock_guard lock(mutex_);
      lines_.push_back(line);
    };
  }

  const std::string folder_ = testing::TempDir() + "mikv_report_" + std::to_string(getpid());
  std::mutex mutex_;
  std::vector<std::string> lines_;
};

TEST(ReportText, ASpecWithQuotesIsAStringOfJson) {
  ReportFigures figures;
  figures.spec = R"(rtn4:balancer=a"b\c)";
  EXPECT_NE(report_json(figures).find(R"("spec": "rtn4:balancer=a\"b\\c")"), std::string::npos);
}

TEST_F(ReportTest, SumsContextsAndKeepsWhatThoseThatEndedCounted) {
  Report report(path("kv.json"), log());
  SmallEngine a, b;
  ASSERT_TRUE(a.prompt(0, 128).ok() && b.prompt(0, 64).ok());
  report.note(a.cache());
  report.note_step(b.cache());
  ReportFigures sums = report.figures();
  EXPECT_EQ(sums.n_contexts, 2u);
  EXPECT_EQ(sums.n_steps, 3u);
  EXPECT_EQ(sums.usage.total(), a.bytes() + b.bytes());
  EXPECT_GE(sums.peak_bytes, sums.usage.total());
  EXPECT_EQ(sums.spec, b.cache().spec().to_string());

  report.finish(a.cache());
  sums = report.figures();
  EXPECT_EQ(sums.n_contexts, 1u);
  EXPECT_EQ(sums.n_steps, 3u);
  EXPECT_EQ(sums.usage.total(), b.bytes());
  EXPECT_TRUE(lines_.empty()) << lines_.front();
}

TEST_F(ReportTest, ARequestIsRefusedOnceHoweverItIsTried) {
  SmallEngine::Setup tight;
  tight.budget = 1 << 10;
  SmallEngine engine(tight);
  Report report(path("kv.json"));
  for (const uint32_t n : {64u, 32u, 16u}) EXPECT_EQ(engine.prompt(0, n).code(), ErrorCode::over_budget);
  report.note(engine.cache());
  EXPECT_EQ(engine.cache().figures().n_refused, 3u);
  EXPECT_EQ(engine.cache().figures().n_undecided_requests, 1u);
  EXPECT_EQ(report.figures().n_refused_requests, 0u) << "it may be tried with less";
  EXPECT_EQ(report.figures().budget_bytes, tight.budget);
  report.finish(engine.cache());
  EXPECT_EQ(report.figures().n_refused_requests, 1u);
}

TEST_F(ReportTest, TheFileFollowsAndAllMayReadIt) {
  SmallEngine engine;
  std::string expected;
  {
    Report report(path("kv.json"), log());
    ASSERT_TRUE(engine.prompt(0, 64).ok());
    report.note(engine.cache());
    ASSERT_TRUE(comes_to_have(path("kv.json"), "\"kv_steps_total\": 1,"));
    ASSERT_TRUE(engine.prompt(0, 64).ok());
    report.note(engine.cache());
    ASSERT_TRUE(comes_to_have(path("kv.json"), "\"kv_steps_total\": 2,"));
    expected = report_json(report.figures());
  }
  EXPECT_EQ(content_of(path("kv.json")), expected);
  struct stat file;
  ASSERT_EQ(stat(path("kv.json").c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0644u);
}

TEST_F(ReportTest, TheEndWritesWhatTheFileDoesNotHave) {
  SmallEngine engine;
  {
    Report report(path("kv.prom"));
    report.note(engine.cache());
    ASSERT_TRUE(comes_to_have(path("kv.prom"), "mikv_kv_steps_total 0"));
    ASSERT_TRUE(engine.prompt(0, 64).ok());
    report.note(engine.cache());
  }
  EXPECT_NE(content_of(path("kv.prom")).find("\nmikv_kv_steps_total 1\n"), std::string::npos);
  EXPECT_NE(content_of(path("kv.prom")).find("# TYPE mikv_kv_steps_total counter\n"), std::string::npos);
}

TEST_F(ReportTest, TheLastContextLeavesItsFigures) {
  Report report(path("kv.json"));
  SmallEngine engine;
  ASSERT_TRUE(engine.prompt(0, 64).ok());
  report.finish(engine.cache());
  EXPECT_NE(content_of(path("kv.json")).find("\"kv_contexts\": 1"), std::string::npos);
  EXPECT_NE(content_of(path("kv.json")).find("\"kv_steps_total\": 1"), std::string::npos);
}

TEST_F(ReportTest, AFileOfAProcessThatLivesIsLeftAlone) {
  ASSERT_GT(getppid(), 0);
  std::ifstream stat("/proc/" + std::to_string(getppid()) + "/stat");
  std::string field;
  for (int i = 0; i < 22; ++i) stat >> field;  // shells and ctest have no space in their names
  const std::string theirs =
      "{\n  \"process\": " + std::to_string(getppid()) + ",\n  \"process_started\": " + field + "\n}\n";
  std::ofstream(path("kv.json")) << theirs;
  ASSERT_EQ(report::living_owner(path("kv.json")), uint64_t(getppid()));
  SmallEngine engine;
  Report report(path("kv.json"), log());
  report.finish(engine.cache());
  EXPECT_EQ(content_of(path("kv.json")), theirs);
  EXPECT_NE(content_of(path("kv." + std::to_string(getpid()) + ".json")).find("kv_bytes"), std::string::npos);
  ASSERT_EQ(lines_.size(), 1u);
  EXPECT_NE(lines_[0].find("writes " + path("kv.json")), std::string::npos) << lines_[0];
}

TEST_F(ReportTest, AFileThatCannotBeWrittenIsSaidOnce) {
  Report report(path("no/such/folder.json"), log());
  SmallEngine engine;
  report.note(engine.cache());
  report.finish(engine.cache());
  report.finish(engine.cache());
  EXPECT_EQ(lines_.size(), 1u);
}

}  // namespace
}  // namespace mikv
