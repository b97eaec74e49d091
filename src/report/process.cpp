#include "report/process.hpp"

#include <unistd.h>

#include <charconv>
#include <fstream>
#include <iterator>
#include <string_view>

namespace mikv::report {
namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Process process_of(uint64_t id) {
  const std::string stat = content_of("/proc/" + std::to_string(id) + "/stat");
  size_t at = stat.rfind(')');  // behind the program's name comes field 3
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
  Process process{id, 0};
  if (at != std::string::npos) std::from_chars(&stat[at] + 1, stat.data() + stat.size(), process.started);
  return process;
}

uint64_t number_behind(std::string_view text, std::string_view word) {
  size_t at = text.find(word);
  if (at == std::string_view::npos) return 0;
  at = text.find_first_of("0123456789", at);
  uint64_t value = 0;
  if (at != std::string_view::npos) std::from_chars(text.data() + at, text.data() + text.size(), value);
  return value;
}

}  // namespace

const Process& this_process() {
  static const Process process = process_of(uint64_t(getpid()));
  return process;
}

uint64_t living_owner(const std::string& file) {
  const std::string text = content_of(file);
  const Process owner{number_behind(text, "process"), number_behind(text, "process_started")};
  return owner.id && owner.started && process_of(owner.id) == owner ? owner.id : 0;
}

}  // namespace mikv::report
