#include "cache_model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "policy/policy.hpp"
#include "symmetric_bound.hpp"

namespace mikv::test {
namespace {

constexpr uint32_t kCells = 150;  // of each segment; segment f has cells from f * 1000, except that some are shared
constexpr uint32_t kSegmentTokens = 16;  // a centre of fewer tokens means nothing: the segment stays staged until then

/// The share of a row's squares that a trellis of so many bits may lose: by the table (codec/trellis.hpp) it is 0.34,
/// 0.093, 0.023, 0.007 and 0.001 on average over normally distributed rows. These have 8 or 32 channels of any
/// distribution under one scale; the most seen in 100,000 of them was 0.67, 0.41, 0.08 and 0.015. Another row than the
/// right one loses about 2.
constexpr double kMostLost[] = {1.0, 0.9, 0.6, 0.2, 0.06, 0.06, 0.06};

/// Squares count as the weights of their tiles. The least scale is 2^-12, so that levels are 2^-5 apart at least.
void check_trellis(const std::vector<double>& wanted, const std::vector<double>& got, const std::vector<uint8_t>& bits,
                   const std::vector<float>& weights, double rounding, uint32_t n_encodes) {
  double energy = 0.0, error = 0.0, least = 0.0;
  for (size_t c = 0; c < wanted.size(); ++c) {
    const double weight = weights[c / 16];
    energy += weight * std::pow(wanted[c], 2);
    error += weight * std::pow(got[c] - wanted[c], 2);
    least += weight * std::pow(rounding + 0x1p-5, 2);
  }
  // What is encoded again has no more energy than before: errors add up, at worst all in one direction.
  const double lost = kMostLost[*std::ranges::min_element(bits)] * energy + least;
  RC_ASSERT(error <= lost * n_encodes * n_encodes);
}

/// True if KV heads have different shares of tokens in hi.
bool sized_by_head(const Spec& spec) { return policy::policy_of(spec.importance).patterns.n > 0; }

/// Places in hi of other policies.
uint64_t places(const Spec& spec, uint64_t n_live) {
  if (spec.importance == Importance::full) return n_live;
  if (spec.importance != Importance::residual) return policy::hi_places(spec.keep, n_live);
  // Whole blocks of 16 leave, once there are as many beside the residual.
  uint64_t n_hi = n_live;
  while (n_hi >= spec.residual + 16) n_hi -= 16;
  return n_hi;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const Operation& operation) {
  const char* const names[] = {"put",   "attend",      "step",  "commit",         "commit_all",
                               "erase", "erase_range", "clear", "retain",         "reload",
                               "copy",  "rotate",      "lower", "stage_in_bytes", "trim"};
  return out << names[size_t(operation.kind)] << "(segment " << operation.segment << ", cell " << operation.cell
             << ", count " << operation.count << ")";
}

rc::Gen<Operation> any_operation() {
  const auto kind = rc::gen::weightedElement<Kind>({{6, Kind::put},
                                                    {3, Kind::attend},
                                                    {6, Kind::step},
                                                    {4, Kind::commit},
                                                    {1, Kind::commit_all},
                                                    {3, Kind::erase},
                                                    {1, Kind::erase_range},
                                                    {1, Kind::clear},
                                                    {2, Kind::retain},
                                                    {2, Kind::reload},
                                                    {1, Kind::copy},
                                                    {1, Kind::rotate},
                                                    {1, Kind::lower},
                                                    {2, Kind::stage_in_bytes},
                                                    {1, Kind::trim}});
  return rc::gen::apply(
      [](Kind k, uint32_t segment, uint32_t cell, uint32_t count) { return Operation{k, segment, cell, count}; }, kind,
      rc::gen::inRange(0u, 2u), rc::gen::inRange(0u, kCells), rc::gen::inRange(0u, 40u));
}

Model::Model(const std::string& spec, Faults* faults)
    : shape_{4, kHeads, 32, Spec::parse(spec).value().outlier_channels ? 24u : 8u},
      layer_(make_layer(shape_, spec)),
      faults_(faults),
      random_(20) {}

void Model::apply(const Operation& operation) {
  const SegmentId segment = operation.segment;
  // Cells 0..49 are numbers of both segments: segments do not share them, they only look alike.
  const Cell first = operation.cell < 50 ? operation.cell : operation.cell + 1000 * segment;
  switch (operation.kind) {
    case Kind::put: put_cells(segment, first, operation.count); break;
    case Kind::attend: attend(operation.count % 5 + 1, false); break;
    case Kind::step:
      put_cells(segment, first, 1);
      check();  // each check sees one encoding of a token at most
      attend(1, true);
      break;
    case Kind::commit: commit(segment); break;
    case Kind::commit_all: commit_all(); break;
    case Kind::erase: erase(segment, first, operation.count); break;
    case Kind::erase_range:
      layer_->erase_if(segment, first, first + operation.count);
      for (auto& [id, model] : segments_)
        if (id == segment) forget(model, first, first + operation.count);
      break;
    case Kind::clear:
      layer_->clear();
      segments_.clear();
      break;
    case Kind::retain: retain(segment, first, operation.count); break;
    case Kind::reload: reload(segment, operation.count); break;
    case Kind::copy: copy(); break;
    case Kind::rotate: rotate(segment, first, operation.count); break;
    case Kind::lower: lower(); break;
    case Kind::stage_in_bytes: stage_in_bytes(operation.count > 9); break;
    case Kind::trim: trim(segment); break;
  }
  check();
}

Status Model::attempt(const std::function<Status()>& call) {
  if (!faults_) {
    const Status status = call();
    RC_ASSERT(status.ok());
    return status;
  }
  faults_->begin();
  Status status;
  try {
    status = call();
  } catch (...) {
    faults_->end();
    throw;
  }
  const bool failed = faults_->end();
  RC_ASSERT(status.ok() || failed);
  return status;
}

// Halves, so that staging them is exact. Channels differ in size and in their mean: what balancers, centres and bits by
// tile are for.
void Model::put_cells(SegmentId segment, Cell first, uint32_t count) {
  Tokens tokens(shape_, count, random_);
  const auto fill = [](std::span<float> row, float mean) {
    for (uint32_t c = 0; c < row.size(); ++c)
      row[c] = rounded_to_half(mean * float(c % 5) + row[c] * (c % 3 ? 0.5f : 8.0f));
  };
  std::vector<Cell> cells;
  Segment& model = segments_[segment];
  for (uint32_t i = 0; i < count; ++i) {
    cells.push_back(first + (count - 1 - i) * 2);  // neither rising nor dense
    model.n_removed += !model.cells.insert(cells.back()).second;
    for (uint32_t head = 0; head < kHeads; ++head) {
      const std::span k(tokens.key(i, head), shape_.head_dim_k), v(tokens.value(i, head), shape_.head_dim_v);
      fill(k, 3.0f);
      fill(v, 0.5f);
      model.tokens[head][cells.back()] = {.k = {k.begin(), k.end()}, .v = {v.begin(), v.end()}};
      for (uint32_t c = 0; c < k.size(); ++c) model.ranges[head][c].widen(k[c]);
    }
  }
  const Status put = attempt(
      [&] { return layer_->put(segment, cells, tokens.k.data(), tokens.k_stride, tokens.v.data(), tokens.v_stride); });
  if (put) return;
  for (const Cell cell : cells) forget(model, cell, cell + 1);  // they hold nothing then
}

void Model::attend(uint32_t n_tokens, bool and_commit) {
  Request request(shape_, n_tokens, random_);
  request.record = true;
  request.commit = and_commit;
  moves_ |= and_commit;
  std::vector<float> out;
  const Status status =
      run_around(*layer_, request, [&](const std::function<Status()>& call) { return attempt(call); }, out);
  if (status) {
    for (const float x : out) RC_ASSERT(std::isfinite(x));
  }
  if (!and_commit) return;
  for (SegmentId segment = 0; segment < kSegments; ++segment) committed(segment, !status);
}

void Model::commit(SegmentId segment) {
  moves_ = true;
  const Status status = attempt([&] { return layer_->commit(segment); });
  committed(segment, !status);
}

void Model::commit_all() {
  moves_ = true;
  for (SegmentId each = 0; each < kSegments; ++each) commit(each);
}

void Model::copy() {
  if (attempt([&] { return layer_->copy_segment(0, 1); })) segments_[1] = segments_[0];
}

void Model::erase(SegmentId segment, Cell first, uint32_t count) {
  std::vector<Cell> cells;
  for (uint32_t i = 0; i < count; ++i) cells.push_back(first + 3 * (i / 2));  // some twice, many unknown
  cells.push_back(kMaxCells - 1);
  layer_->erase(segment, cells);
  if (!segments_.count(segment)) return;
  for (const Cell cell : cells) forget(segments_[segment], cell, cell + 1);
}

void Model::retain(SegmentId segment, Cell first, uint32_t count) {
  // All but `count` cells from `first`, and without the last words of the bitmap if that is long.
  std::vector<uint64_t> live((first + count) / 64 + 3, ~uint64_t{0});
  for (Cell cell = first; cell < first + count; ++cell) live[cell / 64] &= ~(uint64_t{1} << (cell % 64));
  layer_->retain(segment, live);
  forget(segments_[segment], first, first + count);
  forget(segments_[segment], Cell(live.size() * 64), kMaxCells);
}

/// Saves the segment and loads it again, under other numbers and back.
void Model::reload(SegmentId segment, uint32_t shift) {
  const Segment& model = segments_[segment];
  if (model.cells.empty()) return;
  const std::vector<Cell> cells(model.cells.begin(), model.cells.end());
  std::vector<Cell> others;
  for (const Cell cell : cells) others.push_back(cell + 7 * shift);
  const auto move = [&](const std::vector<Cell>& from, const std::vector<Cell>& to) -> Status {
    std::vector<uint8_t> bytes;
    const Spec held = layer_->spec_of(segment);
    if (const Status saved = layer_->save_segment(segment, from, bytes); !saved) return saved;
    auto loaded = layer_->load_segment(bytes, uint32_t(from.size()), held);
    return loaded ? layer_->adopt_segment(segment, std::move(loaded).value(), to) : Status(loaded.error());
  };
  if (!attempt([&] { return move(cells, others); })) return;
  if (!attempt([&] { return move(others, cells); })) RC_ASSERT(move(others, cells).ok());
}

/// Other keys in some cells, in the tier that they are in.
void Model::rotate(SegmentId segment, Cell first, uint32_t count) {
  Segment& model = segments_[segment];
  moves_ = true;
  layer_->visit_keys(segment, [&](std::span<const Cell> cells, uint32_t head, std::span<float> keys) {
    uint32_t changed = 0;
    for (size_t i = 0; i < cells.size(); ++i) {
      RC_ASSERT(model.cells.count(cells[i]) == 1);
      if (cells[i] < first || cells[i] >= first + count) continue;
      const std::span<float> key = keys.subspan(i * shape_.head_dim_k, shape_.head_dim_k);
      std::ranges::reverse(key);
      for (float& x : key) x = rounded_to_half(x);
      Token& token = model.tokens[head].at(cells[i]);
      token.k.assign(key.begin(), key.end());
      token.new_k = true;
      for (uint32_t c = 0; c < key.size(); ++c) model.ranges[head][c].widen(key[c]);
      changed |= 1u << i;
    }
    return changed;
  });
}

void Model::lower() {
  const Spec before = layer_->spec();
  moves_ = true;
  rung_ = {rung_.keep * 0.7, before.mixed() ? rung_.bits - 0.25 : 2.0};
  const auto lower = [&] {
    Status first;
    for (SegmentId segment = 0; segment < kSegments; ++segment) {
      if (!layer_->n_cells(segment)) continue;
      if (const Status status = layer_->lower(segment, rung_); first && !status) first = status;
    }
    return first;
  };
  n_lowered_ = 1;
  if (!attempt(lower)) {
    RC_ASSERT(lower().ok());  // stopped in the middle, it goes on where it was
    n_lowered_ = 2;
  }
  for (SegmentId segment = 0; segment < kSegments; ++segment) {
    for (uint32_t head = 0; head < kHeads; ++head) {
      const TierCounts counts = count_tiers(layer_->dump(segment, head));
      if (counts.staged || before.importance == Importance::full || sized_by_head(before)) continue;
      RC_ASSERT(counts.hi <= places(layer_->spec_of(segment), layer_->n_cells(segment)));
    }
  }
}

void Model::stage_in_bytes(bool on) {
  RC_ASSERT(attempt([&] {
              layer_->stage_in_bytes(on);
              return Status{};
            }).ok());
}

void Model::trim(SegmentId segment) {
  const uint64_t before = layer_->bytes_used();
  RC_ASSERT(attempt([&] {
              layer_->trim(segment);
              return Status{};
            }).ok());
  RC_ASSERT(layer_->bytes_used() <= before);
}

void Model::forget(Segment& model, Cell first, Cell last) {
  model.n_removed += uint32_t(std::distance(model.cells.lower_bound(first), model.cells.lower_bound(last)));
  model.cells.erase(model.cells.lower_bound(first), model.cells.lower_bound(last));
  for (auto& tokens : model.tokens) tokens.erase(tokens.lower_bound(first), tokens.lower_bound(last));
}

/// What commit() must have done, given the tiers before it.
void Model::committed(SegmentId segment, bool failed) {
  const auto found = segments_.find(segment);
  if (found == segments_.end()) return;
  Segment& model = found->second;
  const Spec& spec = layer_->spec_of(segment);
  for (uint32_t head = 0; head < kHeads; ++head) {
    const auto& before = model.tokens[head];
    uint64_t n_staged = 0, n_hi = 0;
    for (const auto& [cell, token] : before)
      n_staged += token.tier == TokenTier::staged, n_hi += token.tier == TokenTier::hi;
    const std::vector<StoredToken> tokens = layer_->dump(segment, head);
    const TierCounts after = count_tiers(tokens);

    const bool may_wait =
        spec.needs_calibration() && n_staged < kSegmentTokens && (!model.compressed[head] || n_staged == before.size());
    const bool must_wait =
        spec.uncompressed() || (spec.needs_calibration() && n_staged < kSegmentTokens && !model.compressed[head]);
    if (after.staged > 0 || n_staged == 0) {  // nothing was compressed
      RC_ASSERT(n_staged == 0 || must_wait || may_wait || failed);
      heads_differ_ |= failed;
      RC_ASSERT(after.staged == n_staged);
      RC_ASSERT(after.hi == n_hi);
      continue;
    }
    RC_ASSERT(!must_wait);
    const uint64_t budget = places(spec, model.cells.size());
    if (!sized_by_head(spec)) RC_ASSERT(after.hi == std::min(n_hi + n_staged, budget));
    for (const StoredToken& token : tokens) {
      const TokenTier was = before.at(token.cell).tier;
      if (token.tier == TokenTier::hi)
        RC_ASSERT(was == TokenTier::hi || was == TokenTier::staged);  // nobody is promoted
      if (was == TokenTier::lo || was == TokenTier::evicted) RC_ASSERT(token.tier == was);
    }
    model.compressed[head] = true;
  }
}

void Model::check() {
  uint64_t n_elements = 0;
  TierCounts sum;
  std::vector<SavedHead> heads;
  for (SegmentId segment = 0; segment < kSegments; ++segment) {
    Segment& model = segments_[segment];
    RC_ASSERT(layer_->n_cells(segment) == model.cells.size());
    n_elements += model.cells.size() * kHeads * (shape_.head_dim_k + shape_.head_dim_v);
    const SavedSegment now = saved(segment);
    heads.insert(heads.end(), now.heads.begin(), now.heads.end());
    for (uint32_t head = 0; head < kHeads; ++head) {
      const std::vector<StoredToken> tokens = sorted_dump(*layer_, segment, head);
      const TierCounts counts = count_tiers(tokens);
      check_head(model, head, now.heads[head], tokens);
      RC_ASSERT(now.heads[head].n_staged == counts.staged);
      RC_ASSERT(now.heads[head].n_hi == counts.hi);
      RC_ASSERT(now.heads[head].n_lo == counts.lo);
      if (!layer_->spec().uncompressed() && !heads_differ_) RC_ASSERT(layer_->n_staged(segment) == counts.staged);
      sum.staged += counts.staged, sum.hi += counts.hi, sum.lo += counts.lo, sum.evicted += counts.evicted;
    }
  }
  const MemoryUsage usage = layer_->memory_usage();
  RC_ASSERT(usage.n_elements == n_elements);
  RC_ASSERT(usage.n_staged_tokens == sum.staged);
  RC_ASSERT(usage.n_hi_tokens == sum.hi);
  RC_ASSERT(usage.n_lo_tokens == sum.lo);
  RC_ASSERT(usage.n_evicted_tokens == sum.evicted);
  RC_ASSERT(layer_->bytes_used() == usage.total());
  check_bytes(usage, heads);
  n_lowered_ = 0;
  moves_ = false;
  for (auto& [id, model] : segments_) model.n_removed = 0;
}

/// The segment as it would be saved; of one without cells, heads that hold nothing.
SavedSegment Model::saved(SegmentId segment) const {
  const std::set<Cell>& cells = segments_.at(segment).cells;
  if (cells.empty()) return {0, {}, std::vector<SavedHead>(kHeads)};
  std::vector<uint8_t> bytes;
  RC_ASSERT(layer_->save_segment(segment, std::vector<Cell>(cells.begin(), cells.end()), bytes).ok());
  return read_saved_segment(bytes, uint32_t(cells.size()), shape_, layer_->spec_of(segment), sizeof(Cell));
}

/// The tokens of a head, by cell, are the model's cells, once each, with what was put.
void Model::check_head(Segment& model, uint32_t head, const SavedHead& saved, const std::vector<StoredToken>& tokens) {
  RC_ASSERT(tokens.size() == model.cells.size());
  auto cell = model.cells.begin();
  for (const StoredToken& token : tokens) {
    RC_ASSERT(token.cell == *cell++);
    Token& seen = model.tokens[head].at(token.cell);
    check_payload(model, head, token, saved);
    if (token.tier == TokenTier::lo) {
      for (uint32_t c = 0; c < token.k.size(); ++c) model.ranges[head][c].widen(token.k[c]);
    }
    seen = {token.tier, token.tier == TokenTier::staged && saved.in_bytes, token.k, token.v, false, false};
  }
}

/// A token is encoded once where it is new, or in another tier than before, and again by each call of lower() if it is
/// in lo; otherwise it is to the bit what it was.
void Model::check_payload(const Segment& model, uint32_t n_head, const StoredToken& now, const SavedHead& head) const {
  const Token& before = model.tokens[n_head].at(now.cell);
  const bool evicted = now.tier == TokenTier::evicted;
  RC_ASSERT(now.k.size() == (evicted ? 0 : shape_.head_dim_k));
  RC_ASSERT(now.v.size() == (evicted ? 0 : shape_.head_dim_v));
  if (evicted) return;
  const bool in_bytes = now.tier == TokenTier::staged && head.in_bytes;
  const bool moved = now.tier != before.tier || in_bytes != before.in_bytes;
  const uint32_t n_lowered = now.tier == TokenTier::lo ? n_lowered_ : 0;
  const uint32_t n_encodes = (before.new_k || moved) + n_lowered;
  if (now.tier == TokenTier::lo && head.spec.keys_by_channel) {
    check_by_channel(model, n_head, now, head, n_encodes);
  } else {
    check_encoded(before.k, now.k, now, true, head, n_encodes);
  }
  check_encoded(before.v, now.v, now, false, head, (before.new_v || moved) + n_lowered);
}

// A call that removes tokens encodes a block anew once, and so does one that brings tokens to a block that has room.
void Model::check_by_channel(const Segment& model, uint32_t head, const StoredToken& now, const SavedHead& saved,
                             uint32_t n_encodes) const {
  const std::vector<float>& before = model.tokens[head].at(now.cell).k;
  n_encodes += (model.n_removed > 0) + (moves_ ? std::max(1u, n_lowered_) : 0);
  for (uint32_t c = 0; c < before.size(); ++c) {
    const auto [low, high] = model.ranges[head][c];
    double bound = 0.0;
    for (uint32_t i = 0; i < n_encodes; ++i) {
      // The block's own range is a part of this one; its ends may be no halves where this one's are.
      bound += quantisation_bound(low - bound, high + bound, saved.spec.lo) +
               half_rounding(std::max(std::abs(low), std::abs(high)) + bound);
    }
    RC_ASSERT(std::abs(double(now.k[c]) - before[c]) <= bound);
  }
}

void Model::check_encoded(std::span<const float> before, std::span<const float> now, const StoredToken& token, bool key,
                          const SavedHead& head, uint32_t n_encodes) const {
  const Spec& spec = head.spec;
  const bool staged = token.tier == TokenTier::staged;
  const Format format = staged                        ? head.in_bytes ? Format::int8 : Format::f16
                        : token.tier == TokenTier::hi ? spec.hi
                                                      : spec.lo;
  const SavedAxes none, &axes = staged ? (key && head.in_bytes ? head.staged_key : none) : key ? head.key : head.value;
  if (n_encodes == 0) {
    RC_ASSERT(std::ranges::equal(before, now));
    return;
  }
  if (format == Format::f16 && axes.trivial()) {
    RC_ASSERT(std::ranges::equal(before, now, {}, rounded_to_half));
    return;
  }
  const std::vector<double> wanted = axes.to_tier(before), got = axes.to_tier(now);
  const double rounding = axes.rounding(before) + axes.rounding(now);
  if (format == Format::mixed) {
    check_trellis(wanted, got, key ? head.bits_k : head.bits_v, key ? head.weights_k : head.weights_v, rounding,
                  n_encodes);
    return;
  }
  const bool symmetric = spec.quantiser == Quantiser::symmetric && !staged;
  const uint32_t n_outlier = staged || format == Format::f16 ? 0 : n_outlier_channels(spec);
  for (uint32_t c = 0; c < n_outlier; ++c) {
    const double bound = rounding + n_encodes * half_rounding(std::abs(wanted[c]) + rounding);
    RC_ASSERT(std::abs(got[c] - wanted[c]) <= bound);
  }
  const uint32_t n_channels = uint32_t(wanted.size()) - n_outlier;
  const uint32_t group = format == Format::f16         ? 1
                         : key && spec.keys_by_channel ? n_channels
                                                       : spec.group.resolve(n_channels);
  for (size_t begin = n_outlier; begin < wanted.size(); begin += group) {
    const auto [low, high] = std::minmax_element(&wanted[begin], &wanted[begin] + group);
    double bound = rounding;  // what is encoded may be off by so much already
    for (uint32_t i = 0; i < n_encodes; ++i) {
      const double largest = std::max(std::abs(*low), std::abs(*high)) + bound;
      bound += format == Format::f16 ? half_rounding(largest)
               : symmetric           ? symmetric_bound(largest, format)
                                     : quantisation_bound(*low - bound, *high + bound, format);
    }
    for (size_t c = begin; c < begin + group; ++c) RC_ASSERT(std::abs(got[c] - wanted[c]) <= bound);
  }
}

/// Codes and scales of live tokens are counted to the byte: for each token of a block its share of the block's tiles
/// (codec/block.hpp), head dimensions padded to whole ones.
void Model::check_bytes(const MemoryUsage& usage, const std::vector<SavedHead>& heads) const {
  const Spec& asked = layer_->spec();
  const auto groups = [&](Format format, bool by_channel = false) -> uint64_t {
    if (format == Format::f16 || format == Format::evict) return 0;
    const uint32_t n_outlier = n_outlier_channels(asked), dim_k = shape_.head_dim_k - n_outlier,
                   dim_v = shape_.head_dim_v - n_outlier;
    // Two tiles' channels have a scale for 16 tokens each: two for each token. Staged keys in bytes are one group then.
    const uint32_t groups_k = by_channel ? 2 : asked.keys_by_channel ? 1 : dim_k / asked.group.resolve(dim_k);
    return groups_k + dim_v / asked.group.resolve(dim_v);
  };
  const uint64_t n_padded = 32 + (shape_.head_dim_v + 15) / 16 * 16, n_tiles = n_padded / 16;
  const uint64_t n_outlier = 2 * n_outlier_channels(asked);  // of K and of V
  const auto token_bytes = [&](Format format) -> uint64_t {
    return (n_outlier * 16 + (n_padded - n_outlier) * format_bits(format)) / 8;
  };
  uint64_t staged = 0, hi = 0, lo = 0, scales = 0, n_stored = 0, n_scored = 0;
  for (const SavedHead& head : heads) {
    const Spec& spec = head.spec;
    staged += head.n_staged * n_padded * (head.in_bytes ? 1 : 2);
    hi += head.n_hi * token_bytes(spec.hi);
    const uint64_t scale_bytes = spec.quantiser == Quantiser::symmetric ? 2 : 4;  // a zero beside the scale
    scales +=
        scale_bytes * head.n_hi * groups(spec.hi) + (head.in_bytes ? 4 * head.n_staged * groups(Format::int8) : 0);
    n_stored += head.n_staged + head.n_hi + head.n_lo;
    n_scored += head.n_staged + head.n_hi;
    if (!spec.mixed()) {
      lo += head.n_lo * token_bytes(spec.lo);
      scales += scale_bytes * head.n_lo * groups(spec.lo, spec.keys_by_channel);
      continue;
    }
    uint64_t bits = 0;
    for (const auto* tiles : {&head.bits_k, &head.bits_v}) bits += std::accumulate(tiles->begin(), tiles->end(), 0u);
    lo += head.n_lo * bits * 16 / 8;
    scales += 2 * head.n_lo;
    if (head.bits_k.empty()) continue;
    RC_ASSERT(bits >= n_tiles);
    // bits= is of a block's elements, ids and scales included; a tile has one bit at least.
    const double block = spec.bits * 16.0 * (shape_.head_dim_k + shape_.head_dim_v) / 8.0;
    RC_ASSERT(double(bits) <= std::max(double(n_tiles), (block - 16.0 * (sizeof(Cell) + 2.0)) / 32.0));
  }
  RC_ASSERT(usage.staged == staged);
  RC_ASSERT(usage.hi == hi);
  RC_ASSERT(usage.lo == lo);
  RC_ASSERT(usage.scales == scales);
  RC_ASSERT(usage.ids >= n_stored * sizeof(Cell));
  RC_ASSERT(usage.scores == (asked.importance == Importance::full ? 0 : n_scored * 2 * sizeof(uint32_t)));
}

}  // namespace mikv::test
