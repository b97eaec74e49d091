// The command's pieces, one by one.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <utility>

#include "bar_chart.hpp"
#include "busy_machine.hpp"
#include "engine/engine.hpp"
#include "errors.hpp"
#include "json_report.hpp"
#include "kv_knob.hpp"
#include "line_retrieval.hpp"
#include "mikv/thread_team.hpp"
#include "progress.hpp"
#include "random.hpp"
#include "statistics.hpp"
#include "stock_bits.hpp"
#include "table.hpp"
#include "terminal.hpp"
#include "utf8.hpp"
#include "word_lists.hpp"

namespace mikv::cli {
namespace {

namespace fs = std::filesystem;

TEST(Statistics, QuantilesInterpolateAsNumpyDoes) {
  const std::vector<double> values = {4, 1, 3, 2};
  EXPECT_DOUBLE_EQ(quantile(values, 0.0), 1.0);
  EXPECT_DOUBLE_EQ(median(values), 2.5);
  EXPECT_DOUBLE_EQ(quantile(values, 0.99), 3.97);
  EXPECT_DOUBLE_EQ(quantile(values, 1.0), 4.0);
  EXPECT_DOUBLE_EQ(median({}), 0.0);
  EXPECT_DOUBLE_EQ(median(std::vector<double>{7}), 7.0);
}

TEST(Statistics, LogSoftmaxSumsToOneAndSurvivesLargeLogits) {
  for (float offset : {0.0f, 1e4f, -1e4f}) {
    const std::vector<float> logits = {offset, offset + 1, offset - 2};
    double sum = 0;
    for (double value : log_softmax(logits)) sum += std::exp(value);
    EXPECT_NEAR(sum, 1.0, 1e-12);
  }
}

TEST(Statistics, DivergenceOfKnownDistributions) {
  const std::vector<double> p = {std::log(0.5), std::log(0.5)}, q = {std::log(0.9), std::log(0.1)};
  EXPECT_NEAR(kl_divergence(p, p), 0.0, 1e-15);
  EXPECT_NEAR(kl_divergence(p, q), 0.5 * std::log(0.5 / 0.9) + 0.5 * std::log(0.5 / 0.1), 1e-12);
  const std::vector<double> certain = {0.0, -INFINITY};
  EXPECT_NEAR(kl_divergence(certain, p), std::log(2.0), 1e-12);  // a probability of 0 adds nothing
}

TEST(Random, SameSeedSameNumbersOnEveryMachine) {
  Random random(7);
  EXPECT_EQ(random.next(), 7191089600892374487u);  // golden: SplitMix64 from 7
  Random other(8);
  std::set<uint32_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(other.below(6));
  EXPECT_EQ(seen, (std::set<uint32_t>{0, 1, 2, 3, 4, 5}));
}

TEST(Random, GaussiansHaveTheirMoments) {
  Random random(1);
  double sum = 0, squares = 0;
  constexpr int kN = 100000;
  for (int i = 0; i < kN; ++i) {
    const double value = random.gaussian();
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / kN, 0.0, 5.0 / std::sqrt(kN));  // 5 standard errors
  EXPECT_NEAR(squares / kN, 1.0, 5.0 * std::sqrt(2.0 / kN));
}

TEST(Table, AlignsByWidthOnScreen) {
  Table table({{"kv", Table::Align::left}, {"score"}});
  table.add_row({"full", "100 %"});
  table.add_row({"naïve", "5 %"});
  table.add_row({"x"});
  EXPECT_EQ(table.text(false),
            "kv     score\n"
            "-----  -----\n"
            "full   100 %\n"
            "naïve    5 %\n"
            "x\n");
  EXPECT_NE(table.text(true).find("\033[1m"), std::string::npos);
}

TEST(Terminal, BytesAndDurationsReadWell) {
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1536), "1.50 KiB");
  EXPECT_EQ(format_bytes(115 * 1024 * 1024.0), "115 MiB");
  EXPECT_EQ(format_duration(59.4), "59 s");
  EXPECT_EQ(format_duration(200), "3 min 20 s");
  EXPECT_EQ(format_duration(7500), "2 h 05 min");
}

TEST(Progress, TellsShareTimeLeftAndNote) {
  Progress progress("eval", 10);
  progress.update(2, "prompt 3 of 10");
  EXPECT_EQ(progress.line(30.0), "eval   20 %  2 min 00 s left  prompt 3 of 10");
  EXPECT_EQ(progress.line(0.5), "eval   20 %  prompt 3 of 10");  // too early to tell
}

TEST(LineRetrieval, WordListsAreLargeAndDistinct) {
  EXPECT_GE(std::size(kAdjectives), 150u);
  EXPECT_GE(std::size(kNouns), 150u);
  EXPECT_EQ(std::set<std::string_view>(std::begin(kAdjectives), std::end(kAdjectives)).size(), std::size(kAdjectives));
  EXPECT_EQ(std::set<std::string_view>(std::begin(kNouns), std::end(kNouns)).size(), std::size(kNouns));
}

TEST(LineRetrieval, CasesHoldWhatTheyAskFor) {
  for (uint32_t n_lines : {1u, 2u, 20u, 200u}) {
    for (uint32_t index = 0; index < 20; ++index) {
      const LineCase line_case = make_line_case(n_lines, 7, index);
      const std::string line =
          fmt::format("line {}: REGISTER_CONTENT is <{}>\n", line_case.line_name, line_case.expected_number);
      EXPECT_NE(line_case.prompt.find(line), std::string::npos);
      EXPECT_TRUE(line_case.prompt.ends_with("in line " + line_case.line_name + "? I need the number."));
      size_t n_found = 0;
      for (size_t at = 0; (at = line_case.prompt.find("REGISTER_CONTENT is <", at)) != std::string::npos; ++at)
        ++n_found;
      EXPECT_EQ(n_found, n_lines);
    }
  }
}

TEST(LineRetrieval, CasesDependOnSeedAndIndexOnly) {
  EXPECT_EQ(make_line_case(20, 7, 3).prompt, make_line_case(20, 7, 3).prompt);
  EXPECT_NE(make_line_case(20, 7, 3).prompt, make_line_case(20, 7, 4).prompt);
  EXPECT_NE(make_line_case(20, 7, 3).prompt, make_line_case(20, 8, 3).prompt);
  EXPECT_NE(make_line_case(20, 7, 1).prompt, make_line_case(20, 8, 0).prompt);  // neighbouring seeds share no case
}

TEST(LineRetrieval, OnlyTheWholeNumberCounts) {
  EXPECT_TRUE(answers("1234>", "1234"));
  EXPECT_TRUE(answers("It is <1234>.", "1234"));
  EXPECT_FALSE(answers("12345>", "1234"));
  EXPECT_FALSE(answers("01234>", "1234"));
  EXPECT_FALSE(answers("", "1234"));
  EXPECT_FALSE(answers("none", ""));
}

TEST(LineRetrieval, ThousandsMayBeSeparated) {
  for (const char* written : {"12,345>", "It is 12'345.",
                              "12\xC2\xA0"
                              "345",
                              "12\xE2\x80\xAF"
                              "345",
                              "5, 12,345"}) {
    EXPECT_TRUE(answers(written, "12345")) << written;
  }
  EXPECT_TRUE(answers("1,234,567", "1234567"));
  for (const char* written : {"12,345", "112,345", "12,3456", "12,34", "12345.5"}) {
    EXPECT_FALSE(answers(written, "345")) << written;
    EXPECT_FALSE(answers(written, "2345")) << written;
  }
  EXPECT_TRUE(answers("12, 345", "12"));
  EXPECT_FALSE(answers("47123.7", "47123"));  // another number
  EXPECT_TRUE(answers("It is 47123.", "47123"));
}

TEST(LineRetrieval, NegativeNumbersHaveTheirSign) {
  EXPECT_TRUE(answers("is <-5>", "-5"));
  EXPECT_TRUE(
      answers("\xE2\x88\x92"
              "5",
              "-5"));
  EXPECT_FALSE(answers("-5", "5"));
  EXPECT_TRUE(answers("line brave-5", "5"));
}

TEST(LineRetrieval, AnswerEndsWhereItsNumberEnds) {
  for (const char* open : {"12,", "12,3", "12,345", "12.", "12.5"}) EXPECT_FALSE(answer_is_complete(open)) << open;
  for (const char* ended : {"12, ", "12,345>", "12. ", "12.5 ", "12,3 "})
    EXPECT_TRUE(answer_is_complete(ended)) << ended;
  EXPECT_FALSE(answer_is_complete(""));
  EXPECT_FALSE(answer_is_complete("12"));
  EXPECT_TRUE(answer_is_complete("12>"));
  EXPECT_FALSE(answer_is_complete(" is "));
}

class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& text)
      : path_(fs::temp_directory_path() / fmt::format("mikv-test-{}", std::rand())) {
    std::ofstream(path_) << text;
  }
  ~TemporaryFile() { fs::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  fs::path path_;
};

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const UserError& error) {
    return error.what();
  }
  return "no error";
}

TEST(LineRetrieval, ReadsLongEvalFiles) {
  const TemporaryFile file(
      R"({"expected_number": 42, "num_lines": 1, "prompt": "... what is the <REGISTER_CONTENT> in line torpid-kid? )"
      R"(I need the number."})"
      "\n\n"
      R"({"expected_number": "7", "prompt": "no question"})"
      "\n");
  const auto cases = read_line_cases(file.path());
  ASSERT_EQ(cases.size(), 2u);
  EXPECT_EQ(cases[0].expected_number, "42");
  EXPECT_EQ(cases[0].answer_prefix(), "The <REGISTER_CONTENT> in line torpid-kid is <");
  EXPECT_EQ(cases[1].expected_number, "7");
  EXPECT_EQ(cases[1].answer_prefix(), "");
}

std::string row(const std::string& expected_number) {
  return "{\"prompt\": \"p\", \"expected_number\": " + expected_number + "}\n";
}

TEST(LineRetrieval, ReadsFilesOfOtherTools) {
  const TemporaryFile file("\xEF\xBB\xBF" + row("42") + "\r\n \t\r\n" + row("7"));
  ASSERT_EQ(read_line_cases(file.path()).size(), 2u);
}

TEST(LineRetrieval, ReadsNumbersAsPeopleWriteThem) {
  const std::pair<const char*, const char*> forms[] = {{"47123", "47123"},
                                                       {"47123.0", "47123"},
                                                       {"-5", "-5"},
                                                       {"\" 12,345 \"", "12345"},
                                                       {"\"+7\"", "7"},
                                                       {"\"-1,234\"", "-1234"},
                                                       {"\"007\"", "007"},
                                                       {"\"0\"", "0"},
                                                       {"18446744073709551615", "18446744073709551615"},
                                                       {"-9223372036854775808", "-9223372036854775808"}};
  for (const auto& [written, read] : forms) {
    const TemporaryFile file(row(written));
    EXPECT_EQ(read_line_cases(file.path()).front().expected_number, read) << written;
  }
}

TEST(LineRetrieval, RefusesWhatIsNoWholeNumber) {
  for (const char* wrong :
       {"47123.7", "1e30", "true", "null", "\"\"", "\" \"", "\"x\"", "\"5 6\"", "\"12,34\"", "\"1.5\"", "[1]", "{}",
        "18446744073709551616", "\"18446744073709551616\"", "\"-9223372036854775809\"", "\"--5\""}) {
    const TemporaryFile file(row("1") + row(wrong));
    const std::string message = message_of([&] { read_line_cases(file.path()); });
    EXPECT_NE(message.find(file.path() + " line 2 has the expected_number "), std::string::npos)
        << wrong << ": " << message;
  }
}

TEST(LineRetrieval, SaysWhatIsWrongWithALine) {
  const auto message = [](const std::string& text) {
    const TemporaryFile file(text);
    return message_of([&] { read_line_cases(file.path()); });
  };
  EXPECT_NE(message("[" + row("1") + "]").find("line 1"), std::string::npos);
  EXPECT_NE(message("[{\"prompt\": \"p\", \"expected_number\": 1}]").find("array"), std::string::npos);
  EXPECT_NE(message("\xFF\xFE{").find("UTF-8"), std::string::npos);
  EXPECT_NE(message("{\"expected_number\": 1}").find("no \"prompt\""), std::string::npos);
  EXPECT_NE(message("{\"prompt\": \"p\"}").find("no \"expected_number\""), std::string::npos);
}

TEST(LineRetrieval, NamesTheBadLineOfAFile) {
  const TemporaryFile not_json("{\"prompt\": \"p\", \"expected_number\": 1}\nnot json\n");
  EXPECT_NE(message_of([&] { read_line_cases(not_json.path()); }).find(not_json.path() + " line 2"), std::string::npos);
  const TemporaryFile wrong_type("{\"prompt\": 3, \"expected_number\": 1}\n");
  EXPECT_NE(message_of([&] { read_line_cases(wrong_type.path()); }).find("line 1"), std::string::npos);
  const TemporaryFile empty("\n");
  EXPECT_NE(message_of([&] { read_line_cases(empty.path()); }).find("no test case"), std::string::npos);
  EXPECT_NE(message_of([] { read_line_cases("/no/such/file"); }).find("No such file"), std::string::npos);
}

TEST(KvList, MixesSpecsAndStockTypes) {
  const auto list = llama::parse_kv_list("full,mikv:keep=0.2,hi=f16,llama:q4_0");
  ASSERT_TRUE(list.ok()) << list.message();
  ASSERT_EQ(list.value().size(), 3u);
  EXPECT_EQ(list.value()[1].name, "mikv:keep=0.2,hi=f16");
  EXPECT_EQ(list.value()[1].spec->hi, Format::f16);
  EXPECT_TRUE(list.value()[2].stock());
}

TEST(KvList, RefusesWithTheRemedy) {
  const auto message = [](const char* list) {
    const auto parsed = llama::parse_kv_list(list);
    return parsed.ok() ? std::string("no error") : parsed.message();
  };
  EXPECT_NE(message("llama:q3_0").find("q8_0"), std::string::npos);
  EXPECT_NE(message("mikv,mikv").find("twice"), std::string::npos);
  EXPECT_NE(message("").find("empty"), std::string::npos);
  EXPECT_NE(message("llama").find("llama:f16"), std::string::npos);
  EXPECT_NE(message("mikv:keep=7").find("keep"), std::string::npos);
}

TEST(KvList, EveryStockTypeHasASize) {
  std::istringstream names(llama::stock_type_names());
  for (std::string name; std::getline(names >> std::ws, name, ',');) {
    const auto choice = llama::KvChoice::parse("llama:" + name);
    ASSERT_TRUE(choice.ok()) << name;
    EXPECT_GE(stock_bits_per_element(choice.value()), 4.5) << name;
    EXPECT_LE(stock_bits_per_element(choice.value()), 16.0) << name;
  }
}

TEST(KvKnob, MoreBitsThanAnyRowGiveTheLargest) {
  const std::vector<TunedSpec> rows = {{"small", 2.0, 0.1}, {"lucky", 3.0, 0.01}, {"large", 4.0, 0.02}};
  EXPECT_EQ(pick_by_bits(rows, 2.5).spec, "small");
  EXPECT_EQ(pick_by_bits(rows, 3.9).spec, "lucky");
  EXPECT_EQ(pick_by_bits(rows, 4.0).spec, "large");
  EXPECT_EQ(pick_by_bits(rows, 20.0).spec, "large");
}

TEST(Report, HasMetaAndRowsAndReplacesTheFileWhole) {
  const TemporaryFile file("old");
  set_command_line(3, std::array<const char*, 3>{"mikv", "eval", "it's"}.data());
  JsonReport report(file.path(), "eval lines");
  report.add_row({{"kv", "full"}, {"score", 1.0}});
  report.write();
  const auto read = Json::parse(std::ifstream(file.path()));
  EXPECT_EQ(read["meta"]["command"], "eval lines");
  EXPECT_EQ(read["meta"]["command_line"], "mikv eval 'it'\\''s'");
  for (const char* key : {"version", "commit", "cpu", "date"}) EXPECT_TRUE(read["meta"].contains(key)) << key;
  EXPECT_EQ(read["rows"][0]["score"], 1.0);
  EXPECT_FALSE(fs::exists(file.path() + ".partial"));
}

TEST(Report, TakesTextOfAnyBytes) {
  const TemporaryFile file("");
  set_command_line(2, std::array<const char*, 2>{"mikv", "caf\xE9"}.data());
  JsonReport report(file.path(), "eval kld");
  report.meta()["text"] = "\xFF\xC3";
  report.write();
  const auto read = Json::parse(std::ifstream(file.path()));
  EXPECT_EQ(read["meta"]["command_line"], "mikv caf\xEF\xBF\xBD");
}

TEST(Utf8, OnlyWellFormedCharactersPass) {
  for (const char* valid :
       {"", "plain", "na\xC3\xAFve", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\xED\x9F\xBF", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_EQ(find_invalid_utf8(valid), std::string::npos) << valid;
    EXPECT_EQ(to_valid_utf8(valid), valid);
  }
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(to_valid_utf8("na\xEFve"), "na" + bad + "ve");
  EXPECT_EQ(to_valid_utf8("a\xC3"), "a" + bad);                         // cut short
  EXPECT_EQ(to_valid_utf8("\xC0\x80"), bad + bad);                      // overlong
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80"), bad + bad + bad);            // surrogate
  EXPECT_EQ(to_valid_utf8("\xF7\xBF\xBF\xBF"), bad + bad + bad + bad);  // beyond U+10FFFF
  EXPECT_EQ(find_invalid_utf8("ab\xFF"), 2u);
}

TEST(Report, RefusesAPathThatCannotBeWritten) {
  EXPECT_NE(message_of([] { JsonReport("/no/such/folder/x.json", "c"); }).find("no folder"), std::string::npos);
  EXPECT_NE(message_of([] { JsonReport("/tmp", "c"); }).find("name a file"), std::string::npos);
}

TEST(Plot, EscapesTextAndDrawsABarForEachValue) {
  const BarChart chart{.title = "a < b & c",
                       .subtitle = "s",
                       .rows = {{"one", false}, {"two", true}},
                       .panels = {{"p", {{0.5, "50 %"}, {2.0, "200 %"}}}}};
  const std::string text = svg(chart);
  const BarChart odd{.title = "caf\xE9\x01", .subtitle = "", .rows = {}, .panels = {{"p", {}}}};
  EXPECT_EQ(find_invalid_utf8(svg(odd)), std::string::npos);  // XML must be UTF-8, without control characters
  EXPECT_EQ(svg(odd).find('\x01'), std::string::npos);
  EXPECT_NE(text.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_EQ(text.find("a < b"), std::string::npos);
  size_t n_bars = 0;
  for (size_t at = 0; (at = text.find("rx=\"2\"", at)) != std::string::npos; ++at) ++n_bars;
  EXPECT_EQ(n_bars, 2u);
}

TEST(BusyMachine, IdleShareIsAShare) {
  const double share = idle_share(50);
  EXPECT_GE(share, 0.0);
  EXPECT_LE(share, 1.0);
}

TEST(ThreadTeam, AllThreadsRunAndMeetAtBarriers) {
  for (uint32_t n : {1u, 2u, 5u}) {
    ThreadTeam team(n);
    std::atomic<uint32_t> arrived = 0;
    std::atomic<bool> early = false;
    for (int round = 0; round < 100; ++round) {
      arrived = 0;
      team.run([&](uint32_t) {
        ++arrived;
        team.barrier();
        if (arrived != n) early = true;
        team.barrier();
      });
      ASSERT_EQ(arrived, n);
    }
    EXPECT_FALSE(early);
  }
}

}  // namespace
}  // namespace mikv::cli
