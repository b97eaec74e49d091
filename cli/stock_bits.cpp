#include "stock_bits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string_view>
#include <utility>

#include "errors.hpp"

namespace mikv::cli {
namespace {

// Blocks of ggml have 32 codes; scales and minima are in f16.
constexpr std::pair<std::string_view, double> kStockBits[] = {{"f16", 16},
                                                              {"bf16", 16},
                                                              {"q8_0", 8 + 16 / 32.0},
                                                              {"q5_1", 5 + 32 / 32.0},
                                                              {"q5_0", 5 + 16 / 32.0},
                                                              {"q4_1", 4 + 32 / 32.0},
                                                              {"q4_0", 4 + 16 / 32.0},
                                                              {"iq4_nl", 4 + 16 / 32.0}};

}  // namespace

double stock_bits_per_element(const llama::KvChoice& choice) {
  std::string_view type = choice.name;
  type.remove_prefix(type.find(':') + 1);
  type = type.substr(0, type.find(':'));
  const auto found = std::ranges::find(kStockBits, type, [](const auto& known) { return known.first; });
  if (found == std::end(kStockBits))
    throw UserError(fmt::format("the size of {} is not known; leave it out", choice.name));
  return found->second;
}

}  // namespace mikv::cli
