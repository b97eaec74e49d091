#include "line_retrieval.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <iterator>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string_view>

#include "errors.hpp"
#include "json_report.hpp"
#include "random.hpp"
#include "utf8.hpp"
#include "word_lists.hpp"
#include "written_number.hpp"

namespace mikv::cli {
namespace {

constexpr std::string_view kHeader =
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding "
    "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of "
    "a "
    "certain line index. Now the record start:\n\n";
constexpr uint32_t kLargestNumber = 50000;

/// "brave-otter" in "... in line brave-otter? I need the number."
std::string asked_line(const std::string& prompt) {
  constexpr std::string_view kBefore = "in line ";
  const size_t begin = prompt.rfind(kBefore);
  if (begin == std::string::npos) return {};
  const size_t end = prompt.find('?', begin);
  if (end == std::string::npos) return {};
  return prompt.substr(begin + kBefore.size(), end - begin - kBefore.size());
}

/// What is wrong with a row. Its file and line are put before it.
struct BadRow : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws BadRow unless the text is one whole number of at most 64 bits, as people write them.
std::string whole_number(const std::string& text) {
  const auto bad = [&](const char* why) {
    throw BadRow(fmt::format("has the expected_number \"{}\", which {}", text.substr(0, 40), why));
  };
  const size_t begin = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  if (begin == std::string::npos) bad("is empty");
  std::string_view rest = std::string_view(text).substr(begin, last + 1 - begin);
  std::string sign;
  for (const std::string_view minus : {"-", "\xE2\x88\x92"}) {  // U+2212
    if (sign.empty() && rest.starts_with(minus)) {
      sign = "-";
      rest.remove_prefix(minus.size());
    }
  }
  if (sign.empty() && rest.starts_with('+')) rest.remove_prefix(1);
  const WrittenNumber number = next_number(rest, 0);
  if (number.digits.empty() || number.begin != 0 || number.end != rest.size() || !number.whole)
    bad("is no whole number");
  const std::string digits = sign + number.digits;
  errno = 0;
  if (sign.empty()) {
    (void)std::strtoull(digits.c_str(), nullptr, 10);
  } else {
    (void)std::strtoll(digits.c_str(), nullptr, 10);
  }
  if (errno == ERANGE) bad("does not fit 64 bits");
  return digits;
}

std::string expected_number(const nlohmann::json& value) {
  if (value.is_string()) return whole_number(value.get<std::string>());
  if (value.is_number_unsigned()) return std::to_string(value.get<uint64_t>());
  if (value.is_number_integer()) return std::to_string(value.get<int64_t>());
  // Tools that know no integers write 47123.0. Beyond 2^53 a double does not tell which integer was meant.
  const double number = value.is_number() ? value.get<double>() : NAN;
  if (std::abs(number) <= 0x1p53 && number == std::trunc(number)) return std::to_string(int64_t(number));
  throw BadRow(fmt::format("has the expected_number {}, which is no whole number of at most 64 bits",
                           json_text(Json(value), -1).substr(0, 40)));
}

/// Throws BadRow.
LineCase read_line_case(const std::string& text) {
  if (find_invalid_utf8(text) != std::string::npos) throw BadRow("is not UTF-8; convert the file with iconv");
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) throw BadRow("is no JSON");
  if (json.is_array()) throw BadRow("is a JSON array; jq -c '.[]' FILE writes its rows one per line");
  if (!json.is_object()) throw BadRow("is no JSON object");
  const auto prompt = json.find("prompt"), expected = json.find("expected_number");
  if (prompt == json.end() || !prompt->is_string()) throw BadRow("has no \"prompt\" that is text");
  if (expected == json.end()) throw BadRow("has no \"expected_number\"");
  LineCase result;
  result.prompt = prompt->get<std::string>();
  result.expected_number = expected_number(*expected);
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
  std::string text = read_file(path, "test cases");
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  std::istringstream file(text);
  std::vector<LineCase> cases;
  size_t line_number = 0;
  for (std::string line; std::getline(file, line);) {
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      cases.push_back(read_line_case(line));
    } catch (const BadRow& bad) {
      throw UserError(fmt::format(
          "{} line {} {}; a test case is a JSON object on one line, with \"prompt\" (text) and \"expected_number\" (a "
          "whole number)",
          path, line_number, bad.what()));
    }
  }
  if (cases.empty())
    throw UserError(fmt::format("{} holds no test case; LongEval's files have one JSON object a line", path));
  return cases;
}

bool answers(const std::string& answer, const std::string& expected_number) {
  if (expected_number.empty()) return false;
  for (size_t at = 0;;) {
    const WrittenNumber number = next_number(answer, at);
    if (number.digits.empty()) return false;
    if (number.whole && number.digits == expected_number) return true;
    at = number.end;
  }
}

bool answer_is_complete(const std::string& answer) {
  const WrittenNumber number = next_number(answer, 0);
  return !number.digits.empty() && number.ended;
}

}  // namespace mikv::cli
