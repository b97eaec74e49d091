// Names in a spec and in the errors about it: lists of what there is, and the nearest to what was typed.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "codec/formats.hpp"
#include "policy/policy.hpp"

namespace mikv::spec {

/// What the user typed, fit for a one-line message: printable ASCII, not too long.
std::string quoted(std::string_view text);

/// ": did you mean 'x'?" for the nearest of `names`, or "" if none is within 2 edits, and within half its length.
std::string suggestion(std::string_view typed, const std::vector<std::string_view>& names);

/// "a, b, c".
std::string joined(const std::vector<std::string_view>& names);
/// "a, b or c".
std::string any_of(const std::vector<std::string_view>& names);

/// Names of the formats of a tier: those of hi from the best down, those of lo from the smallest up.
std::vector<std::string_view> format_names(codec::FormatUse tier, bool quantised_only = false);

/// Names of the policies for which `wanted` holds.
template <typename Wanted>
std::vector<std::string_view> policy_names(Wanted wanted) {
  std::vector<std::string_view> names;
  for (const policy::Policy& each : policy::policies()) {
    if (std::invoke(wanted, each)) names.push_back(each.name);
  }
  return names;
}

}  // namespace mikv::spec
