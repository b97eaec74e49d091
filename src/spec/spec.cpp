// Spec: the one string that chooses everything a cache does, e.g. "mikv:keep=0.2,hi=f16,lo=int2".
//
// A preset is itself a list of key=value pairs, so there is one parser: it applies the preset's pairs, then the
// user's. Choices that would be ignored are refused when the user wrote them, and dropped when a preset brought them.
#include "mikv/spec.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string>
#include <type_traits>

#include "codec/formats.hpp"
#include "policy/ladder.hpp"
#include "policy/policy.hpp"
#include "spec/names.hpp"
#include "spec/reconcile.hpp"

namespace mikv {

using spec::any_of;
using spec::default_staged;
using spec::format_names;
using spec::joined;
using spec::policy_names;
using spec::quoted;
using spec::suggestion;

namespace {

constexpr size_t kMaxSpecLength = 512;  // the canonical form of any spec is under 200
constexpr uint32_t kMaxGroupChannels = 512;
constexpr uint32_t kMaxSinks = 1024;
constexpr uint32_t kMaxResidual = 65536;
constexpr uint32_t kMaxAutomaticGroup = 64;

template <typename E>
struct Named {
  std::string_view name;
  E value;
};

constexpr std::array kPrefills = {Named<Prefill>{"exact", Prefill::exact},
                                  Named<Prefill>{"streaming", Prefill::streaming},
                                  Named<Prefill>{"spread", Prefill::spread}};
constexpr std::array kStagedFormats = {Named<Format>{"f16", Format::f16}, Named<Format>{"int8", Format::int8}};
constexpr std::array kQuantisers = {Named<Quantiser>{"asymmetric", Quantiser::asymmetric},
                                    Named<Quantiser>{"symmetric", Quantiser::symmetric}};
// Whether keys have scales by channel.
constexpr std::array kKeyScales = {Named<bool>{"token", false}, Named<bool>{"channel", true}};
constexpr std::array<std::string_view, 17> kKeys = {
    "keep",       "hi",     "lo",       "bits",     "group",   "quantiser", "keys",  "outlier", "balancer",
    "importance", "recent", "recovery", "residual", "prefill", "staged",    "sinks", "seed"};

template <typename E, size_t n>
std::string_view name_of(const std::array<Named<E>, n>& table, E value) {
  for (const Named<E>& entry : table)
    if (entry.value == value) return entry.name;
  return "?";
}

Error bad_value(std::string_view key, std::string_view value, const std::string& would_do) {
  return Error{"spec key '" + std::string(key) + "': " + quoted(value) + " is not possible; it takes " + would_do};
}

template <typename E, size_t n>
Status set_named(E& target, std::string_view key, std::string_view value, const std::array<Named<E>, n>& table) {
  std::vector<std::string_view> names;
  for (const Named<E>& entry : table) {
    if (entry.name == value) {
      target = entry.value;
      return {};
    }
    names.push_back(entry.name);
  }
  return bad_value(key, value, joined(names));
}

Status set_format(Format& target, std::string_view key, std::string_view value, codec::FormatUse tier) {
  for (const codec::FormatRow& row : codec::kFormats) {
    if (row.named() && row.used_in(tier) && row.name == value) {
      target = row.format;
      return {};
    }
  }
  return bad_value(key, value, joined(format_names(tier)));
}

Status set_importance(Importance& target, std::string_view key, std::string_view value) {
  for (const policy::Policy& each : policy::policies()) {
    if (each.name == value) {
      target = each.importance;
      return {};
    }
  }
  return bad_value(key, value, joined(policy_names([](const policy::Policy&) { return true; })));
}

/// The whole of `text` as a number, or nothing: no sign but '-', no blanks, nothing after it.
template <typename N>
std::optional<N> number(std::string_view text) {
  N parsed{};
  const char* const end = text.data() + text.size();
  const auto [stop, failure] = std::from_chars(text.data(), end, parsed);
  if (failure != std::errc{} || stop != end) return std::nullopt;
  return parsed;
}

template <typename N>
Status set_number(N& target, std::string_view key, std::string_view value, N low, N high, const std::string& would_do) {
  const std::optional<N> parsed = number<N>(value);
  if (!parsed || !(*parsed >= low && *parsed <= high)) return bad_value(key, value, would_do);  // refuses NaN too
  target = *parsed;
  if constexpr (std::is_floating_point_v<N>) target += 0;  // -0 becomes 0
  return {};
}

Status set_group(GroupSize& group, std::string_view value) {
  if (value == "auto" || value == "half" || value == "head") {
    group = {value == "auto"   ? GroupSize::Kind::automatic
             : value == "half" ? GroupSize::Kind::half
                               : GroupSize::Kind::head,
             0};
    return {};
  }
  uint32_t channels = 0;
  Status status = set_number<uint32_t>(channels, "group", value, 1, kMaxGroupChannels,
                                       "auto, half, head, or a number of channels from 1 to 512");
  if (status) group = {GroupSize::Kind::channels, channels};
  return status;
}

Status set_outlier(Spec& spec, std::string_view value) {
  const std::string would_do = "none, f16, or one or more of balancer, center, hadamard joined by '+'";
  spec.balancer = spec.center = spec.hadamard = false;
  spec.outlier_channels = value == "f16";
  if (value == "none" || value == "f16") return {};
  for (std::string_view rest = value;;) {
    const size_t plus = rest.find('+');
    const std::string_view name = rest.substr(0, plus);
    bool* const flag = name == "balancer"                     ? &spec.balancer
                       : name == "center" || name == "centre" ? &spec.center
                       : name == "hadamard"                   ? &spec.hadamard
                                                              : nullptr;
    if (!flag || *flag) return bad_value("outlier", value, would_do);  // unknown, or named twice
    *flag = true;
    if (plus == std::string_view::npos) return {};
    rest.remove_prefix(plus + 1);
  }
}

Status set_balancer_file(Spec& spec, std::string_view value) {
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (value.empty() || std::any_of(value.begin(), value.end(), is_control))
    return bad_value("balancer", value, "the name of a file that `mikv calibrate` has written");
  spec.balancer_file = std::string(value);
  return {};
}

Status set_key(Spec& spec, std::string_view key, std::string_view value) {
  if (key == "keep") return set_number(spec.keep, key, value, 0.0, 1.0, "a number from 0 to 1, e.g. keep=0.1");
  if (key == "hi") return set_format(spec.hi, key, value, codec::kInHi);
  if (key == "lo") return set_format(spec.lo, key, value, codec::kInLo);
  if (key == "bits") return set_number(spec.bits, key, value, 1.0, 5.0, "a number from 1 to 5, e.g. bits=2.75");
  if (key == "group") return set_group(spec.group, value);
  if (key == "quantiser") return set_named(spec.quantiser, key, value, kQuantisers);
  if (key == "keys") return set_named(spec.keys_by_channel, key, value, kKeyScales);
  if (key == "outlier") return set_outlier(spec, value);
  if (key == "balancer") return set_balancer_file(spec, value);
  if (key == "importance") return set_importance(spec.importance, key, value);
  if (key == "recent") return set_number(spec.recent, key, value, 0.0, 1.0, "a number from 0 to 1, e.g. recent=0.75");
  if (key == "recovery")
    return set_number(spec.recovery, key, value, 0.0, 1.0, "a number from 0 to 1, e.g. recovery=0.95");
  if (key == "residual")
    return set_number<uint32_t>(spec.residual, key, value, 0, kMaxResidual, "a whole number from 0 to 65536");
  if (key == "prefill") return set_named(spec.prefill, key, value, kPrefills);
  if (key == "staged") return set_named(spec.staged, key, value, kStagedFormats);
  if (key == "sinks")
    return set_number<uint32_t>(spec.sinks, key, value, 0, kMaxSinks, "a whole number from 0 to 1024");
  return set_number<uint64_t>(spec.seed, key, value, 0, UINT64_MAX, "a whole number from 0 to 2^64-1");
}

/// Applies "key=value,key=value"; adds the keys it met to `given`.
Status apply_keys(Spec& spec, std::string_view pairs, std::vector<std::string_view>& given) {
  for (std::string_view rest = pairs;;) {
    const size_t comma = rest.find(',');
    const std::string_view pair = rest.substr(0, comma);
    const size_t equals = pair.find('=');
    if (equals == std::string_view::npos || equals == 0)
      return Error{"spec: " + quoted(pair) + " is not key=value; a spec reads preset:key=value,key=value"};
    const std::string_view key = pair.substr(0, equals);
    const std::vector<std::string_view> known(kKeys.begin(), kKeys.end());
    if (std::find(known.begin(), known.end(), key) == known.end())
      return Error{"unknown spec key " + quoted(key) + suggestion(key, known) + " (keys: " + joined(known) + ")"};
    if (std::find(given.begin(), given.end(), key) != given.end())
      return Error{"spec key '" + std::string(key) + "' is given twice; give it once"};
    if (Status status = set_key(spec, key, pair.substr(equals + 1)); !status) return status;
    given.push_back(key);
    if (comma == std::string_view::npos) return {};
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace

uint32_t GroupSize::resolve(uint32_t head_dim) const {
  if (head_dim == 0) return 0;
  switch (kind) {
    case Kind::head: return head_dim;
    case Kind::half: return head_dim % 2 == 0 ? head_dim / 2 : 0;
    case Kind::channels: return channels != 0 && head_dim % channels == 0 ? channels : 0;
    case Kind::automatic: break;
  }
  uint32_t largest = std::min(head_dim, kMaxAutomaticGroup);
  while (head_dim % largest != 0) --largest;
  return largest;
}

Result<Spec> Spec::parse(std::string_view text) {
  if (text.size() > kMaxSpecLength)
    return Error{"spec " + quoted(text) + " is " + std::to_string(text.size()) +
                 " characters long; at most 512 are read"};
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  std::vector<std::string_view> names;
  const Preset* chosen = nullptr;
  for (const Preset& preset : presets()) {
    names.push_back(preset.name);
    if (preset.name == name) chosen = &preset;
  }
  if (name.empty() || (!chosen && name.find('=') != std::string_view::npos))
    return Error{"spec " + quoted(text) +
                 " does not begin with a preset, e.g. mikv:keep=0.2 (presets: " + joined(names) + ")"};
  if (!chosen)
    return Error{"unknown spec preset " + quoted(name) + suggestion(name, names) + " (presets: " + joined(names) + ")"};

  Spec spec;
  spec.group = GroupSize();  // what lo=mixed brings with it is not the start of other formats
  spec.hadamard = false;
  spec.recent = 0.5;
  spec.preset = std::string(chosen->name);
  std::vector<std::string_view> given;
  if (Status status = apply_keys(spec, chosen->keys, given); !status) return status.error();
  given.clear();  // the user may override every key of the preset
  if (colon != std::string_view::npos)
    if (Status status = apply_keys(spec, text.substr(colon + 1), given); !status) return status.error();
  if (Status status = spec::reconcile(spec, given); !status) return status.error();
  return spec;
}

namespace {
// The shortest text that reads back.
std::string shortest(double value) {
  std::array<char, 32> digits{};
  return {digits.data(), std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr};
}
}  // namespace

bool Spec::keeps_punctuation() const { return policy::policy_of(importance).keeps_punctuation; }

std::string Spec::to_string() const {
  std::string outlier = outlier_channels ? "f16" : "";
  for (const auto& [used, name] : {std::pair{balancer, "balancer"}, {center, "center"}, {hadamard, "hadamard"}})
    if (used) outlier += (outlier.empty() ? "" : "+") + std::string(name);

  std::string text = preset;
  const policy::Policy& chosen = policy::policy_of(importance);
  text += ":importance=" + std::string(chosen.name);
  if (chosen.reads("recent")) text += ",recent=" + shortest(recent);
  if (chosen.reads("recovery")) text += ",recovery=" + shortest(recovery);
  if (chosen.reads("residual")) text += ",residual=" + std::to_string(residual);
  text += ",keep=" + shortest(keep);
  text += ",hi=" + std::string(format_name(hi)) + ",lo=" + std::string(format_name(lo));
  if (mixed()) text += ",bits=" + shortest(bits);
  text += ",group=" + (group.kind == GroupSize::Kind::automatic ? "auto"
                       : group.kind == GroupSize::Kind::half    ? "half"
                       : group.kind == GroupSize::Kind::head    ? "head"
                                                                : std::to_string(group.channels));
  // Left out at their defaults: sessions saved before these keys existed have the same text.
  if (quantiser == Quantiser::symmetric) text += ",quantiser=" + std::string(name_of(kQuantisers, quantiser));
  if (keys_by_channel) text += ",keys=" + std::string(name_of(kKeyScales, keys_by_channel));
  text += ",outlier=" + (outlier.empty() ? "none" : outlier);
  if (!balancer_file.empty()) text += ",balancer=" + balancer_file;
  text += ",prefill=" + std::string(name_of(kPrefills, prefill));
  if (staged != default_staged(*this)) text += ",staged=" + std::string(format_name(staged));
  text += ",sinks=" + std::to_string(sinks) + ",seed=" + std::to_string(seed);
  return text;
}

std::vector<MeasuredSpec> measured_specs() {
  std::vector<MeasuredSpec> specs;
  for (const auto& [rung, least_kld, most_kld] : policy::measured_rungs()) {
    specs.push_back({"mikv:keep=" + shortest(rung.keep) + ",bits=" + shortest(rung.bits), least_kld, most_kld});
  }
  return specs;
}

bool Spec::can_start(const Spec& other) const {
  const policy::Recording mine = policy::recording_of(*this), needed = policy::recording_of(other);
  return (!needed.attention || needed == mine) && (!other.balancer || balancer);
}

std::vector<std::string> split_spec_list(std::string_view list) {
  std::vector<std::string> specs;
  for (std::string_view rest = list;;) {
    const size_t comma = rest.find(',');
    const std::string_view piece = rest.substr(0, comma);
    const bool only_key = piece.find('=') < piece.find(':');  // find gives npos, the largest, where there is none
    if (only_key && !specs.empty())
      specs.back() += (specs.back().find(':') == std::string::npos ? ":" : ",") + std::string(piece);
    else
      specs.emplace_back(piece);
    if (comma == std::string_view::npos) return specs;
    rest.remove_prefix(comma + 1);
  }
}

uint32_t format_bits(Format format) { return codec::row_of(format).bits; }

std::optional<Format> smaller_format(Format format) { return codec::row_of(format).smaller; }

std::string_view format_name(Format format) { return codec::row_of(format).name; }

}  // namespace mikv
