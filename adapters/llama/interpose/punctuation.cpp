#include "interpose/punctuation.hpp"

#include <algorithm>
#include <array>
#include <string_view>

namespace mikv::llama {
namespace {

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// As C's ispunct() in the "C" locale, whatever the program's locale is.
bool is_mark(char c) {
  return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

bool is_punctuation(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return !text.empty() && std::ranges::all_of(text, is_mark);
}

}  // namespace

std::vector<bool> punctuation_of(const llama_model* model) {
  const llama_vocab* vocabulary = llama_model_get_vocab(model);
  std::vector<bool> found(size_t(std::max(0, llama_vocab_n_tokens(vocabulary))));
  std::array<char, 64> text;  // of a longer text, n is negative
  for (size_t id = 0; id < found.size(); ++id) {
    if (llama_vocab_is_control(vocabulary, llama_token(id))) continue;
    const int32_t n = llama_token_to_piece(vocabulary, llama_token(id), text.data(), int32_t(text.size()), 0, false);
    found[id] = n > 0 && is_punctuation({text.data(), size_t(n)});
  }
  return found;
}

}  // namespace mikv::llama
