// The file of a saved cache: sections of bytes, each with its length and checksum.
//
//   char magic[8]  "MIKVSESS"
//   u32  version   1
//   u32  sections
//   sections x { u32 kind, u32 a, u32 b, u32 0, u64 length, u64 XXH3 of the data }
//   u64  XXH3 of everything above
//   the data, one section after the other, to the end of the file
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "mikv/result.hpp"

namespace mikv::session {

inline constexpr uint32_t kContainerVersion = 1;
inline constexpr uint32_t kMaxSections = 1u << 20;

struct Section {
  uint32_t kind = 0;
  uint32_t a = 0, b = 0;  ///< which of its kind
  std::vector<uint8_t> data;
};

std::vector<uint8_t> pack(std::span<const Section> sections);

/// A section whose bytes are borrowed.
struct SectionView {
  uint32_t kind = 0, a = 0, b = 0;
  std::span<const uint8_t> data;
};

/// Errors: no saved cache of mikv; another version; cut short; a wrong checksum. The message says which.
Result<std::vector<SectionView>> unpack(std::span<const uint8_t> bytes);

/// XXH3, 64 bits.
uint64_t hash(std::span<const uint8_t> bytes);
uint64_t hash(const std::string& text);

}  // namespace mikv::session
