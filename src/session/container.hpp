// The file of a saved cache: sections of bytes, each with its length and checksum.
//
//   char magic[8]  "MIKVSESS"
//   u32  version   2; 1 is read too
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

/// 2: each segment says how it is held. Of version 1, all segments are as the identity's spec says.
inline constexpr uint32_t kContainerVersion = 2;
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

struct Container {
  uint32_t version = 0;
  std::vector<SectionView> sections;
};

/// Errors: no saved cache of mikv; a later version; cut short; a wrong checksum. The message says which.
Result<Container> unpack(std::span<const uint8_t> bytes);

/// XXH3, 64 bits.
uint64_t hash(std::span<const uint8_t> bytes);

}  // namespace mikv::session
