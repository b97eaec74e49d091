// Spec: the one string that chooses everything a cache does, e.g. "mikv:keep=0.2,hi=f16,lo=int2".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mikv/export.h"
#include "mikv/result.hpp"

namespace mikv {

/// How a tier stores its elements. `evict` stores nothing (lo tier only): the token is lost, as in H2O. `mixed` gives
/// every 16 channels of a head 1 to 6 bits by how much their errors count, as trellis codes (lo tier only;
/// src/codec/trellis.hpp). src/codec/formats.hpp has a row for each; f16 stays the last.
enum class Format : uint8_t { evict, mixed, int2, int3, int4, int5, int8, f16 };

/// Which tokens an importance policy keeps in the hi tier.
///  full      all of them
///  h2o       the most recent, and the heaviest by accumulated attention; `recent` divides hi (arXiv 2306.14048)
///  window    the most recent
///  streaming the first `sinks` tokens and the most recent (arXiv 2309.17453)
///  snapkv    those that the end of the prompt attends to, and that end (arXiv 2404.14469)
///  scissorhands  those that many of the last queries attend to (arXiv 2305.17118)
///  fastgen   by KV head, the smallest of five sets that recovers its attention (arXiv 2310.01801)
///  residual  the most recent `residual` tokens and up to 15 more: the others leave in blocks of 16 (arXiv 2402.02750)
///  random    a random subset, from `seed`: the control
enum class Importance : uint8_t { full, h2o, window, streaming, snapkv, scissorhands, fastgen, residual, random };

/// When a prompt is compressed: once at its end (exact attention meanwhile); in pieces of 1,024 to 3,584 tokens while
/// it is read (bounded peak memory); or over at most 128 steps after its end, a share in each: up to 64 weigh errors,
/// the others compress (shorter pauses; at once under a budget).
enum class Prefill : uint8_t { exact, streaming, spread };

/// Number of channels that share a scale and a zero (Eq. 1 of MiKV). Always a divisor of the head dimension.
struct GroupSize {
  enum class Kind : uint8_t { automatic, half, head, channels };
  Kind kind = Kind::automatic;
  uint32_t channels = 0;  ///< used by Kind::channels only

  /// Channels per group of a head of `head_dim` channels; `automatic`: the largest divisor up to 64.
  /// 0 if `channels` does not divide `head_dim`.
  MIKV_API uint32_t resolve(uint32_t head_dim) const;
  bool operator==(const GroupSize&) const = default;
};

/// How codes stand for numbers. asymmetric: a scale and a zero per group (Eq. 1 of MiKV). symmetric: a scale alone; the
/// codes of N bits stand for -(2^(N-1) - 1) to 2^(N-1) - 1 times it, and one code is unused (LLM-QAT, arXiv
/// 2305.17888).
enum class Quantiser : uint8_t { asymmetric, symmetric };

/// Make one by parse(): it sets the defaults of each format and refuses keys that do not fit together. Members that are
/// set by hand are checked where they are used, by Context::add_layer().
struct Spec {
  std::string preset = "mikv";  ///< name of the preset it was made from, for reports
  Importance importance = Importance::h2o;
  double keep = 0.08;  ///< share of the tokens in the hi tier, 0..1: hi holds floor(keep * S) of S tokens
  Format hi = Format::int8;
  Format lo = Format::mixed;
  double bits = 2.7;  ///< of `mixed`: bits per element of the lo tier, mean of K and V, cell ids and scales included
  GroupSize group{GroupSize::Kind::head, 0};
  Quantiser quantiser = Quantiser::asymmetric;  ///< of hi, and of lo; `mixed` has scales of its own
  /// Keys of lo have a scale and a zero per channel of a block of 16 tokens, not per token and group of channels
  /// (keys=channel; KIVI, arXiv 2402.02750). Uniform formats with hi in f16; `group` is then of values alone.
  bool keys_by_channel = false;
  bool balancer = true;       ///< channel balancer, Eq. 2 of MiKV
  std::string balancer_file;  ///< of static balancers (mikv/static_balancer.hpp), in its place; or empty
  bool center = true;         ///< subtract the per-channel mean of the prompt's keys; with `mixed` of its values too
  bool hadamard = true;       ///< rotate K and V by an orthonormal Hadamard matrix before quantising
  /// Keep the 16 channels of K and of V with the largest values of a KV head's prompt in f16 (outlier=f16; LLM.int8(),
  /// arXiv 2208.07339).
  bool outlier_channels = false;
  Prefill prefill = Prefill::exact;
  Format staged = Format::f16;  ///< of a prompt that waits to be compressed, from 256 tokens on: f16 or int8
  double recent = 0.75;  ///< share of the hi tier, 0..1, that `h2o` keeps for the most recent tokens; 0.5 as published
                         ///< (docs/adr/0015-the-recent-share.md)
  double recovery = 0.95;   ///< share of a KV head's attention, 0..1, that what `fastgen` keeps must have had
  uint32_t residual = 128;  ///< most recent tokens that `residual` keeps in hi, at least; it does not read `keep`
  uint32_t sinks = 4;       ///< first tokens that `streaming` and `fastgen` keep
  uint64_t seed = 1;        ///< of `random`

  bool operator==(const Spec&) const = default;

  /// True if tokens stay as they were put (f16, nothing demoted): the uncompressed cache.
  bool uncompressed() const { return importance == Importance::full && hi == Format::f16; }
  /// True if a segment (balancer, centre, outlier channels) must be frozen from the prompt before a token can be
  /// compressed.
  bool needs_calibration() const { return balancer || center || outlier_channels; }
  /// True if Batch::Token::punctuation has an effect.
  bool keeps_punctuation() const;

  /// True if a cache under this spec records what one under `other` needs to start from it (Context::restore).
  bool can_start(const Spec& other) const;

  /// True if tiles of the lo tier differ in bits.
  bool mixed() const { return lo == Format::mixed; }

  /// Parses "preset[:key=value[,key=value...]]". Keys: keep, hi, lo, bits, group, quantiser, keys, outlier,
  /// balancer, importance, recent, recovery, residual, prefill, staged, sinks, seed. Opens no file.
  /// Errors: an unknown preset or key; a value out of range. The message names it and the values that are allowed.
  MIKV_API static Result<Spec> parse(std::string_view text);

  /// The canonical full form; parse(to_string()) returns an equal Spec.
  MIKV_API std::string to_string() const;
};

/// A named spec.
struct Preset {
  std::string_view name;
  std::string_view keys;         ///< what it stands for, as key=value pairs
  std::string_view description;  ///< one line
};

/// All presets, in the order in which help texts list them.
MIKV_API const std::vector<Preset>& presets();

/// A spec of lo=mixed whose loss was measured: mean KL divergence to the full cache at 1,024 tokens, in nats, the least
/// and the most of three models (docs/results/ladder.csv).
struct MeasuredSpec {
  std::string spec;  ///< "mikv:keep=0.2,bits=3.9"
  double least_kld = 0.0, most_kld = 0.0;
};

/// The measured frontier of lo=mixed, from the largest to the smallest: a budget that runs out takes their bits.
MIKV_API std::vector<MeasuredSpec> measured_specs();

/// Splits a comma-separated list of specs. A piece "key=value" belongs to the spec before it:
/// "full,mikv:keep=0.2,hi=f16,h2o" has three specs.
MIKV_API std::vector<std::string> split_spec_list(std::string_view list);

/// Bits per element of a format, without scales; 0 for evict, and for mixed, which has no one number.
MIKV_API uint32_t format_bits(Format format);
/// The uniform lo format that a budget lowers this one to; nothing if there is no smaller one.
MIKV_API std::optional<Format> smaller_format(Format format);
MIKV_API std::string_view format_name(Format format);

}  // namespace mikv
