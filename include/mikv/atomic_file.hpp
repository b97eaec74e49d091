// Files that are there whole or not at all.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "mikv/export.h"
#include "mikv/result.hpp"

namespace mikv {

/// Writes `bytes` to a temporary file beside `path`, syncs it and gives it the name; mode 0600. A link at `path` is
/// replaced, not followed. On an error nothing is left and what stood at `path` stays.
MIKV_API Status write_file(const std::string& path, std::span<const uint8_t> bytes);

/// The whole of a regular file; links are not followed. Error: none there, not readable, larger than `max_bytes`.
MIKV_API Result<std::vector<uint8_t>> read_file(const std::string& path, uint64_t max_bytes = uint64_t{1} << 40);

}  // namespace mikv
