// What tests/data/session-vN.bin holds: written by mikv_write_session_data when the format gets version N, read by
// session_test ever after. Its rows come from integers, so that every build knows them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "session/container.hpp"
#include "test_cache.hpp"

namespace mikv::test {

/// One section for each way in which a segment can be stored.
enum class SessionPart : uint32_t {
  prompt,      ///< staged, with statistics of its queries
  in_bytes,    ///< staged in bytes
  compressed,  ///< hi, lo, and some staged tokens behind them
  continued    ///< the same of a segment that continues another
};
inline constexpr uint32_t kSessionParts = 4;

inline constexpr LayerShape kSessionShape{4, 2, 32, 16};
inline constexpr uint32_t kSessionTokens = 48;  ///< of each part, the last kSessionStaged of them staged
inline constexpr uint32_t kSessionStaged = 6;
inline constexpr const char* kSessionSpec = "mikv:keep=0.25,bits=3.5";

/// A cache of that spec.
std::unique_ptr<LayerCache> make_session_layer();
/// K or V that a part's token was given, exact in f16.
std::vector<float> session_row(uint32_t token, uint32_t kv_head, bool key);
/// The sections of the file: kind is the part.
std::vector<session::Section> make_session_data();

}  // namespace mikv::test
