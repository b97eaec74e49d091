// Choices of a spec that fit together: what the others would ignore is refused where the user wrote it, and dropped
// where a preset brought it.
#pragma once

#include <string_view>
#include <vector>

#include "mikv/result.hpp"
#include "mikv/spec.hpp"

namespace mikv::spec {

/// `given`: the keys that the user wrote.
Status reconcile(Spec& spec, const std::vector<std::string_view>& given);

/// In which format prompts wait, unless the user chooses: who streams them wants to save memory.
Format default_staged(const Spec& spec);

}  // namespace mikv::spec
