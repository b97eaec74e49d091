// Numbers of bytes as people write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "mikv/export.h"
#include "mikv/result.hpp"

namespace mikv {

/// Parses "300MiB", "2GiB", "1.5GB" or "4096". Units: B, KiB, MiB, GiB, TiB; KB, MB, GB, TB are powers of ten. Ignores
/// case. Errors: no number; an unknown unit; zero; more than 2^62.
MIKV_API Result<uint64_t> parse_size(std::string_view text);

/// Formats with three digits: "12.3 MiB".
MIKV_API std::string format_bytes(double bytes);

}  // namespace mikv
