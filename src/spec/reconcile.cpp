#include "spec/reconcile.hpp"

#include <algorithm>
#include <string>

#include "policy/policy.hpp"
#include "spec/names.hpp"

namespace mikv::spec {

namespace {

bool quantises_nothing(const Spec& spec) { return spec.lo == Format::evict && spec.hi == Format::f16; }

/// Of a key that such a spec has no use for; `hence`: what it must be, or is, or nothing.
Error quantises_nothing_error(const std::string& key, const std::string& hence = "") {
  return Error{"spec: hi=f16 with lo=evict quantises nothing" + hence + "; leave " + key + " out, or choose hi=" +
               any_of(format_names(codec::kInHi, true)) + ", or lo=" + any_of(format_names(codec::kInLo, true))};
}

bool waits_in_f16(const Spec& spec) { return quantises_nothing(spec) || spec.outlier_channels; }

/// As reconcile(), of the format in which prompts wait.
Status reconcile_staged(Spec& spec, bool user_gave) {
  if (!user_gave) spec.staged = default_staged(spec);
  if (spec.staged == Format::f16 || !waits_in_f16(spec)) return {};
  if (spec.outlier_channels)
    return Error{
        "spec: outlier=f16 is chosen at a prompt's end, so it waits in f16; leave staged out, or choose outlier=none"};
  return quantises_nothing_error("staged", ", so prompts wait in f16");
}

/// As reconcile(), of the quantiser.
Status reconcile_quantiser(Spec& spec, bool user_gave) {
  if (spec.quantiser == Quantiser::asymmetric || !(spec.mixed() || quantises_nothing(spec))) return {};
  if (user_gave && spec.mixed())
    return Error{"spec: lo=mixed has scales of its own; leave quantiser out, or choose another lo"};
  if (user_gave) return quantises_nothing_error("quantiser");
  spec.quantiser = Quantiser::asymmetric;
  return {};
}

/// As reconcile(), of keys with scales by channel.
Status reconcile_keys(Spec& spec, const std::vector<std::string_view>& given) {
  const auto user_gave = [&](std::string_view key) { return std::ranges::find(given, key) != given.end(); };
  if (!spec.keys_by_channel) return {};
  const std::string others = "; leave keys out, or choose ";
  if (spec.mixed() || spec.lo == Format::evict) {
    if (user_gave("keys"))
      return Error{"spec: keys=channel is of uniform codes, which lo=" + std::string(format_name(spec.lo)) +
                   " has none of" + others + "another lo"};
    spec.keys_by_channel = false;
    return {};
  }
  if (spec.hi != Format::f16)
    return Error{"spec: keys=channel is of lo alone, so hi must be f16; choose hi=f16, or keys=token"};
  if (spec.quantiser == Quantiser::symmetric) {
    if (user_gave("quantiser"))
      return Error{"spec: keys=channel needs quantiser=asymmetric; leave quantiser out, or choose keys=token"};
    spec.quantiser = Quantiser::asymmetric;
  }
  if (spec.balancer || spec.center || spec.hadamard || spec.outlier_channels) {
    if (user_gave("outlier"))
      return Error{
          "spec: keys=channel has a scale for each channel, so outlier must be none; leave outlier out, or "
          "choose keys=token"};
    spec.balancer = spec.center = spec.hadamard = spec.outlier_channels = false;
  }
  if (!spec.balancer_file.empty())
    return Error{"spec: keys=channel has a scale for each channel; leave balancer out, or choose keys=token"};
  return {};
}

/// As reconcile(), of the balancer that is read from a file.
Status reconcile_balancer_file(Spec& spec, bool user_gave_outlier) {
  if (spec.balancer_file.empty()) return {};
  const std::string others = "leave balancer out, or choose another lo";
  if (spec.mixed()) return Error{"spec: lo=mixed has a balancer of each prompt; " + others};
  if (quantises_nothing(spec)) return Error{"spec: hi=f16 with lo=evict quantises nothing; " + others};
  if (user_gave_outlier && spec.balancer)
    return Error{"spec: balancer=FILE takes the place of outlier=balancer; leave one of them out"};
  spec.balancer = false;
  return {};
}

}  // namespace

Format default_staged(const Spec& spec) {
  return spec.prefill == Prefill::streaming && !waits_in_f16(spec) ? Format::int8 : Format::f16;
}

Status reconcile(Spec& spec, const std::vector<std::string_view>& given) {
  const auto user_gave = [&](std::string_view key) {
    return std::find(given.begin(), given.end(), key) != given.end();
  };
  const policy::Policy& policy = policy::policy_of(spec.importance);
  if (!policy.demotes()) {
    const std::string keeps_all = "spec: importance=" + std::string(policy.name),
                      others = "importance=" + any_of(policy_names(&policy::Policy::demotes));
    if (user_gave("keep") && spec.keep != 1.0)
      return Error{keeps_all + " keeps every token in the hi tier, so keep must be 1; leave keep out, or choose " +
                   others};
    if (user_gave("lo") && spec.lo != Format::evict)
      return Error{keeps_all + " demotes no token, so lo=" + std::string(format_name(spec.lo)) +
                   " would do nothing; leave lo out, or choose " + others};
    spec.keep = 1.0;
    spec.lo = Format::evict;
  }
  // always_named: to_string() has the key in every spec.
  const auto only_of = [&](std::string_view key, auto& value, const auto& unused, bool always_named) {
    if (policy.reads(key) || (always_named && value == unused)) return Status();
    const auto reads = [key](const policy::Policy& other) { return other.reads(key); };
    const std::string others = "importance=" + any_of(policy_names(reads));
    if (user_gave(key))
      return Status(Error{"spec: " + std::string(key) + " is of " + others + "; leave it out, or choose " + others});
    value = unused;
    return Status();
  };
  for (const Status& read :
       {only_of("recent", spec.recent, Spec().recent, false),
        only_of("recovery", spec.recovery, Spec().recovery, false), only_of("sinks", spec.sinks, Spec().sinks, true),
        only_of("residual", spec.residual, Spec().residual, false), only_of("seed", spec.seed, Spec().seed, true)}) {
    if (!read) return read;
  }
  if (policy.places) {  // a number of tokens
    if (user_gave("keep") && spec.keep != 0.0)
      return Error{"spec: importance=" + std::string(policy.name) + " keeps residual=" + std::to_string(spec.residual) +
                   " tokens in hi, not a share; leave keep out"};
    spec.keep = 0.0;
  }
  if (spec.mixed()) {  // has one way of handling outliers, and one scale per head
    if (user_gave("outlier") && !(spec.balancer && spec.center && spec.hadamard))
      return Error{"spec: lo=mixed needs outlier=balancer+center+hadamard; leave outlier out, or choose another lo"};
    if (user_gave("group") && spec.group.kind != GroupSize::Kind::head)
      return Error{"spec: lo=mixed needs group=head; leave group out, or choose another lo"};
    spec.balancer = spec.center = spec.hadamard = true;
    spec.outlier_channels = false;
    spec.group = {GroupSize::Kind::head, 0};
  } else {
    if (user_gave("bits")) return Error{"spec: bits is of lo=mixed; leave it out, or choose lo=mixed"};
    spec.bits = Spec().bits;
  }
  if (spec.lo == Format::evict && spec.keep == 0.0 && !policy.places)
    return Error{"spec: keep=0 with lo=evict would store nothing; choose keep above 0, or lo=" +
                 any_of(format_names(codec::kInLo, true))};
  if (quantises_nothing(spec)) {  // no outliers to handle
    if (user_gave("outlier") && (spec.balancer || spec.center || spec.hadamard || spec.outlier_channels))
      return quantises_nothing_error("outlier", ", so outlier must be none");
    spec.balancer = spec.center = spec.hadamard = spec.outlier_channels = false;
  }
  if (Status status = reconcile_balancer_file(spec, user_gave("outlier")); !status) return status;
  if (Status status = reconcile_keys(spec, given); !status) return status;
  if (Status status = reconcile_staged(spec, user_gave("staged")); !status) return status;
  return reconcile_quantiser(spec, user_gave("quantiser"));
}

}  // namespace mikv::spec
