// BalancerFile: the file of a spec with balancer=FILE, read once.
#pragma once

#include <string>

#include "codec/transform.hpp"
#include "mikv/spec.hpp"
#include "mikv/static_balancer.hpp"

namespace mikv::context {

/// Ends errors about such files.
inline constexpr const char* kHowToGetBalancers = "; `mikv calibrate` writes one";

class BalancerFile {
 public:
  /// The balancers of a layer; empty for a spec that names no file. Errors: those of read_static_balancers(); the file
  /// has none for the layer.
  Result<codec::KeyBalancers> of(const Spec& spec, int layer);

 private:
  std::string path_;  ///< that was read
  StaticBalancers balancers_;
};

}  // namespace mikv::context
