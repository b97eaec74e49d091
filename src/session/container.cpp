#include "session/container.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>

#include "session/byte_stream.hpp"

namespace mikv::session {
namespace {

constexpr char kMagic[8] = {'M', 'I', 'K', 'V', 'S', 'E', 'S', 'S'};
constexpr size_t kHeaderBytes = sizeof kMagic + 2 * sizeof(uint32_t);
constexpr size_t kEntryBytes = 4 * sizeof(uint32_t) + 2 * sizeof(uint64_t);

}  // namespace

uint64_t hash(std::span<const uint8_t> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::vector<uint8_t> pack(std::span<const Section> sections) {
  size_t total = kHeaderBytes + sections.size() * kEntryBytes + sizeof(uint64_t);
  for (const Section& section : sections) total += section.data.size();
  std::vector<uint8_t> bytes;
  bytes.reserve(total);
  ByteWriter out(bytes);
  out.put_bytes(kMagic, sizeof kMagic);
  out.put(kContainerVersion);
  out.put(uint32_t(sections.size()));
  for (const Section& section : sections) {
    for (const uint32_t value : {section.kind, section.a, section.b, 0u}) out.put(value);
    out.put(uint64_t(section.data.size()));
    out.put(hash(section.data));
  }
  out.put(hash(bytes));
  for (const Section& section : sections) out.put_bytes(section.data.data(), section.data.size());
  return bytes;
}

Result<Container> unpack(std::span<const uint8_t> bytes) {
  ByteReader in(bytes);
  const uint8_t* magic = in.take(sizeof kMagic);
  if (!magic || std::memcmp(magic, kMagic, sizeof kMagic) != 0)
    return Error{ErrorCode::damaged_data, "no saved cache of mikv"};
  const uint32_t version = in.get<uint32_t>(), n_sections = in.get<uint32_t>();
  if (!in.ok()) return Error{ErrorCode::damaged_data, "cut short"};
  if (version < 1 || version > kContainerVersion) {
    return Error{ErrorCode::damaged_data, "a saved cache of format version " + std::to_string(version) +
                                              "; this mikv reads versions 1 to " + std::to_string(kContainerVersion)};
  }
  if (n_sections > kMaxSections || in.left() / kEntryBytes < n_sections)
    return Error{ErrorCode::damaged_data, "cut short or damaged (its table of sections)"};
  struct Entry {
    uint64_t length, hash;
  };
  std::vector<SectionView> sections(n_sections);
  std::vector<Entry> entries(n_sections);
  for (uint32_t i = 0; i < n_sections; ++i) {
    sections[i].kind = in.get<uint32_t>();
    sections[i].a = in.get<uint32_t>();
    sections[i].b = in.get<uint32_t>();
    (void)in.get<uint32_t>();
    entries[i].length = in.get<uint64_t>();
    entries[i].hash = in.get<uint64_t>();
  }
  const uint64_t table_hash = hash(bytes.first(bytes.size() - in.left()));
  if (in.get<uint64_t>() != table_hash || !in.ok())
    return Error{ErrorCode::damaged_data, "damaged (its table of sections has a wrong checksum)"};
  for (uint32_t i = 0; i < n_sections; ++i) {
    const uint8_t* data = in.take(entries[i].length);
    if (!data) return Error{ErrorCode::damaged_data, "cut short"};
    sections[i].data = {data, size_t(entries[i].length)};
    if (hash(sections[i].data) != entries[i].hash)
      return Error{ErrorCode::damaged_data, "damaged (a section has a wrong checksum)"};
  }
  if (in.left() != 0) return Error{ErrorCode::damaged_data, "damaged (there is more than its sections)"};
  return Container{version, std::move(sections)};
}

}  // namespace mikv::session
