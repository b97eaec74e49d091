// Line retrieval, as LongEval (lmsys.org/blog/2023-06-29-longchat) words it: a record of named lines, each with a
// number; the model is asked for the number of one of them. Names come from our own word lists.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mikv::cli {

struct LineCase {
  std::string prompt;           ///< the user's message
  std::string line_name;        ///< the line that is asked for; empty if a file's prompt does not tell
  std::string expected_number;  ///< decimal digits, '-' before them if it is negative

  /// How an answer begins, so that the model only has to give the number; empty if the line's name is unknown.
  std::string answer_prefix() const;
};

/// Case `index` of a series of `n_lines` lines each. The same arguments give the same case on every machine.
LineCase make_line_case(uint32_t n_lines, uint64_t seed, uint32_t index);

/// Most lines a case can have: all names differ.
uint32_t max_lines();

/// LongEval's own test cases: one JSON object a line, with `prompt` and `expected_number`, a whole number that may also
/// be a string ("12,345"). A byte order mark, CRLF and empty lines are fine. Throws UserError that names the file and
/// line.
std::vector<LineCase> read_line_cases(const std::string& path);

/// True if one of the whole numbers in `answer` is the expected one. "12,345" is one number (written_number.hpp).
bool answers(const std::string& answer, const std::string& expected_number);

/// True once nothing that follows can change a prefixed answer: a number was given and ended.
bool answer_is_complete(const std::string& answer);

}  // namespace mikv::cli
