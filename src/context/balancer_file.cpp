#include "context/balancer_file.hpp"

#include <string>

#include "codec/transform.hpp"

namespace mikv::context {

Result<codec::KeyBalancers> BalancerFile::of(const Spec& spec, int layer) {
  if (spec.balancer_file.empty()) return codec::KeyBalancers();
  if (path_ != spec.balancer_file) {
    auto read = read_static_balancers(spec.balancer_file);
    if (!read) return Error{read.error().code, "spec key balancer: " + read.message()};
    balancers_ = std::move(read).value();
    path_ = spec.balancer_file;
  }
  const auto found = balancers_.find(layer);
  if (found == balancers_.end()) {
    return Error{ErrorCode::mismatch, "spec key balancer: " + path_ + " has nothing for layer " +
                                          std::to_string(layer) + ": it is of another model" + kHowToGetBalancers};
  }
  codec::KeyBalancers heads;
  for (const std::vector<float>& factors : found->second) {
    auto& halves = heads.emplace_back();
    for (const float factor : factors) halves.push_back(codec::balancer_half(factor));
  }
  return heads;
}

}  // namespace mikv::context
