#pragma once

#include <cstdint>
#include <string_view>

#include "mikv/result.hpp"

namespace mikv::llama {

/// "300MiB", "2GiB", "1.5GB", "4096": bytes. Units: B, KiB, MiB, GiB, TiB, and KB, MB, GB, TB in powers of ten; case does not
/// matter. Error: no number, an unknown unit, zero, or more than 2^62.
Result<uint64_t> parse_size(std::string_view text);

}  // namespace mikv::llama
