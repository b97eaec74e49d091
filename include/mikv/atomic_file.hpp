// Files that exist whole or not at all.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "mikv/export.h"
#include "mikv/result.hpp"

namespace mikv {

/// Writes `bytes` to a temporary file beside `path`, syncs it and renames it to `path`; mode 0600. Replaces a link at
/// `path`, does not follow it. After an error (io) `path` is as it was, and nothing is left beside it.
/// durable = false: syncs nothing, which takes a disk's time; a power cut may leave an older or an empty file.
MIKV_API Status write_file(const std::string& path, std::span<const uint8_t> bytes, bool durable = true);

/// Reads a whole regular file; does not follow links. Errors (io): no such file; not readable; over `max_bytes`.
MIKV_API Result<std::vector<uint8_t>> read_file(const std::string& path, uint64_t max_bytes = uint64_t{1} << 40);

}  // namespace mikv
