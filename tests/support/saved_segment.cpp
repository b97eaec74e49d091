#include "saved_segment.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "test_data.hpp"

namespace mikv::test {
namespace {

constexpr uint32_t kTileSide = 16, kBlockTokens = 16;

class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  size_t at() const { return at_; }
  void skip(size_t n) {
    if (n > bytes_.size() - at_) throw std::runtime_error("a saved segment ends too early");
    at_ += n;
  }
  template <typename T>
  T get() {
    return values<T>(1)[0];
  }
  template <typename T>
  std::vector<T> values(size_t n) {
    std::vector<T> result(n);
    const size_t from = at_;
    skip(n * sizeof(T));
    if (n) std::memcpy(result.data(), &bytes_[from], n * sizeof(T));
    return result;
  }
  template <typename T>
  std::vector<T> array() {
    return values<T>(get<uint32_t>());
  }
  std::vector<double> halves() {
    std::vector<double> result;
    for (const uint16_t half : array<uint16_t>()) result.push_back(from_half(half));
    return result;
  }
  SavedAxes axes() {
    SavedAxes axes;
    axes.centre = halves();
    axes.balancer = halves();
    axes.order = array<uint16_t>();
    axes.turns = array<uint16_t>();
    axes.hadamard = get<uint8_t>();
    return axes;
  }

 private:
  std::span<const uint8_t> bytes_;
  size_t at_ = 0;
};

// Bytes of a block (codec/block.hpp): tile_bits of K and V summed; each token has so many bytes of scales.
size_t block_bytes(uint32_t id_bytes, bool scored, uint32_t scale_bytes, uint32_t tile_bits) {
  return kBlockTokens * (id_bytes + (scored ? 8 : 0) + scale_bytes) + size_t{32} * tile_bits;
}

// y = H x / sqrt(n), with H[i][j] = (-1)^(number of ones in i & j): Sylvester's matrix, n a power of two. Blocks of the
// largest such n where x has another length.
void rotate(std::span<double> x) {
  const size_t n = x.size() & (~x.size() + 1);
  for (size_t begin = 0; begin < x.size(); begin += n) {
    const std::vector<double> given(x.begin() + std::ptrdiff_t(begin), x.begin() + std::ptrdiff_t(begin + n));
    for (size_t i = 0; i < n; ++i) {
      double sum = 0.0;
      for (size_t j = 0; j < n; ++j) sum += __builtin_popcountll(i & j) % 2 ? -given[j] : given[j];
      x[begin + i] = sum / std::sqrt(double(n));
    }
  }
}

}  // namespace

std::vector<double> SavedAxes::to_tier(std::span<const float> x) const {
  std::vector<double> moved(x.begin(), x.end());
  for (size_t c = 0; c < centre.size(); ++c) moved[c] -= centre[c];
  for (size_t c = 0; c < balancer.size(); ++c) moved[c] *= balancer[c];
  std::vector<double> result = moved;
  for (size_t i = 0; i < order.size(); ++i) result[i] = moved[order[i]];
  size_t first = 0;
  for (const uint16_t length : turns) {
    rotate(std::span(result).subspan(first, length));
    first += length;
  }
  if (hadamard) rotate(result);
  return result;
}

// A subtraction, a product, a rotation of log2(n) additions and a factor, and their opposites: 2 (3 + log2(n))
// roundings, n <= 32, each of a number no larger than the sum below; a rotation adds n of them by 1 / sqrt(n).
double SavedAxes::rounding(std::span<const float> x) const {
  double largest = 0.0;
  for (size_t c = 0; c < x.size(); ++c) {
    const double b = balancer.empty() ? 1.0 : balancer[c], mu = centre.empty() ? 0.0 : std::abs(centre[c]);
    largest = std::max(largest, (std::abs(double(x[c])) + mu) * b);
  }
  return trivial() ? 0.0 : 16.0 * kF32Epsilon * std::sqrt(double(x.size())) * largest;
}

SavedSegment read_saved_segment(std::span<const uint8_t> bytes, uint32_t n_cells, const LayerShape& shape,
                                const Spec& spec, uint32_t id_bytes) {
  Reader in(bytes);
  SavedSegment segment;
  segment.next_arrival = in.get<uint32_t>();
  segment.live = in.values<uint64_t>((n_cells + 63) / 64);
  const uint32_t n_tiles =
      (shape.head_dim_k + kTileSide - 1) / kTileSide + (shape.head_dim_v + kTileSide - 1) / kTileSide;
  const bool scored = spec.importance != Importance::full;
  // Uniform formats: two halves per group, or one if symmetric, none for f16.
  const uint32_t scale_bytes = spec.quantiser == Quantiser::symmetric ? 2 : 4;
  const auto uniform_block = [&](Format format, bool with_scores, uint32_t bytes_per_group, bool by_channel = false) {
    // By channel a scale is of 16 tokens: those of 16 channels are a group's worth for each token. Staged keys in bytes
    // are one group then.
    const uint32_t n_outlier = n_outlier_channels(spec), dim_k = shape.head_dim_k - n_outlier,
                   dim_v = shape.head_dim_v - n_outlier;
    const uint32_t groups_k = by_channel             ? (dim_k + kTileSide - 1) / kTileSide
                              : spec.keys_by_channel ? 1
                                                     : dim_k / spec.group.resolve(dim_k),
                   groups = groups_k + dim_v / spec.group.resolve(dim_v);
    const uint32_t n_outlier_tiles = 2 * n_outlier / kTileSide;  // of K and of V
    return block_bytes(id_bytes, with_scores, format == Format::f16 ? 0 : bytes_per_group * groups,
                       n_outlier_tiles * 16 + (n_tiles - n_outlier_tiles) * format_bits(format));
  };
  const auto read_tier = [&](size_t bytes_of_block) {
    const uint32_t n = in.get<uint32_t>();
    in.skip((n + kBlockTokens - 1) / kBlockTokens * bytes_of_block);
    return n;
  };
  for (uint32_t h = 0; h < shape.n_kv_heads; ++h) {
    SavedHead& head = segment.heads.emplace_back();
    head.spec = spec;
    const uint8_t flags = in.get<uint8_t>();
    head.frozen = flags & 1, head.sampled = flags & 2, head.continues = flags & 4, head.in_bytes = flags & 8;
    if (head.continues) in.skip(sizeof(uint32_t));
    if (flags & 32) in.skip(1);  // a pattern
    if (head.in_bytes) head.staged_key = in.axes();
    in.skip(sizeof(uint64_t));
    head.q_max = in.array<float>();
    in.array<uint64_t>();
    if (head.sampled) {
      head.arrivals.begin = in.at();
      head.sample_arrivals = in.array<uint32_t>();
      head.arrivals.end = head.queries.begin = in.at();
      in.array<uint16_t>();
      head.queries.end = in.at();
    }
    head.key = in.axes();
    head.value = in.axes();
    head.bits_k = in.array<uint8_t>();
    head.weights_k = in.array<float>();
    head.bits_v = in.array<uint8_t>();
    head.weights_v = in.array<float>();
    head.n_staged = read_tier(uniform_block(head.in_bytes ? Format::int8 : Format::f16, scored, 4));
    head.n_hi = read_tier(uniform_block(spec.hi, scored, scale_bytes));
    const uint32_t tile_bits = std::accumulate(head.bits_k.begin(), head.bits_k.end(), 0u) +
                               std::accumulate(head.bits_v.begin(), head.bits_v.end(), 0u);
    head.n_lo =
        read_tier(spec.mixed()               ? block_bytes(id_bytes, false, 2, tile_bits)
                  : spec.lo == Format::evict ? 0
                                             : uniform_block(spec.lo, false, scale_bytes, spec.keys_by_channel));
  }
  if (in.at() != bytes.size()) throw std::runtime_error("a saved segment is longer than its parts");
  return segment;
}

}  // namespace mikv::test
