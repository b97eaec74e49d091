#include "line_retrieval.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "errors.hpp"
#include "json_report.hpp"
#include "random.hpp"
#include "word_lists.hpp"

namespace mikv::cli {
namespace {

constexpr std::string_view kHeader =
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding "
    "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of "
    "a "
    "certain line index. Now the record start:\n\n";
constexpr uint32_t kLargestNumber = 50000;

bool is_digit(char c) { return std::isdigit(static_cast<unsigned char>(c)); }

/// "brave-otter" in "... in line brave-otter? I need the number."
std::string asked_line(const std::string& prompt) {
  constexpr std::string_view kBefore = "in line ";
  const size_t begin = prompt.rfind(kBefore);
  if (begin == std::string::npos) return {};
  const size_t end = prompt.find('?', begin);
  if (end == std::string::npos) return {};
  return prompt.substr(begin + kBefore.size(), end - begin - kBefore.size());
}

LineCase read_line_case(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  LineCase result;
  result.prompt = json.at("prompt").get<std::string>();
  const auto& expected = json.at("expected_number");
  result.expected_number = expected.is_string() ? expected.get<std::string>() : std::to_string(expected.get<int64_t>());
  result.line_name = asked_line(result.prompt);
  return result;
}

}  // namespace

std::string LineCase::answer_prefix() const {
  return line_name.empty() ? std::string() : "The <REGISTER_CONTENT> in line " + line_name + " is <";
}

uint32_t max_lines() { return uint32_t(std::size(kAdjectives) * std::size(kNouns)); }

LineCase make_line_case(uint32_t n_lines, uint64_t seed, uint32_t index) {
  // Each case has a generator of its own, so that case 3 is the same whether or not cases 0 to 2 were made.
  Random random(Random(seed).next() + index);
  LineCase result;
  result.prompt = kHeader;
  const uint32_t asked = random.below(n_lines);
  std::set<std::string> names;
  for (uint32_t i = 0; i < n_lines; ++i) {
    std::string name;
    do {
      name = fmt::format("{}-{}", kAdjectives[random.below(uint32_t(std::size(kAdjectives)))],
                         kNouns[random.below(uint32_t(std::size(kNouns)))]);
    } while (!names.insert(name).second);
    const uint32_t number = 1 + random.below(kLargestNumber);
    result.prompt += fmt::format("line {}: REGISTER_CONTENT is <{}>\n", name, number);
    if (i == asked) {
      result.line_name = name;
      result.expected_number = std::to_string(number);
    }
  }
  result.prompt +=
      fmt::format("\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {}? I need the number.",
                  result.line_name);
  return result;
}

std::vector<LineCase> read_line_cases(const std::string& path) {
  std::istringstream file(read_file(path, "test cases"));
  std::vector<LineCase> cases;
  size_t line_number = 0;
  for (std::string line; std::getline(file, line);) {
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      cases.push_back(read_line_case(line));
    } catch (const nlohmann::json::exception&) {
      throw UserError(
          fmt::format("{} line {} is not a test case; each line must be a JSON object with \"prompt\" (text) and "
                      "\"expected_number\" (a whole number)",
                      path, line_number));
    }
  }
  if (cases.empty())
    throw UserError(fmt::format("{} holds no test case; LongEval's files have one JSON object a line", path));
  return cases;
}

bool answers(const std::string& answer, const std::string& expected_number) {
  for (auto at = answer.begin(); at != answer.end();) {
    const auto begin = std::find_if(at, answer.end(), is_digit);
    at = std::find_if_not(begin, answer.end(), is_digit);
    if (std::string(begin, at) == expected_number && !expected_number.empty()) return true;
  }
  return false;
}

bool answer_is_complete(const std::string& answer) {
  const auto digits = std::ranges::find_if(answer, is_digit);
  return std::find_if_not(digits, answer.end(), is_digit) != answer.end();
}

}  // namespace mikv::cli
