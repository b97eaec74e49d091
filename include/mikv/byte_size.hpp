// Numbers of bytes as people write and read them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "mikv/export.h"
#include "mikv/result.hpp"

namespace mikv {

/// "300MiB", "2GiB", "1.5GB", "4096": bytes. Units: B, KiB, MiB, GiB, TiB, and KB, MB, GB, TB in powers of ten; case
/// does not matter. Error: no number, an unknown unit, zero, or more than 2^62.
MIKV_API Result<uint64_t> parse_size(std::string_view text);

/// "12.3 MiB": three digits.
MIKV_API std::string format_bytes(double bytes);

}  // namespace mikv
