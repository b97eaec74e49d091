#include "cache_model.hpp"

#include <algorithm>
#include <cmath>

#include "policy/importance.hpp"

namespace mikv::test {
namespace {

constexpr uint32_t kCells = 150;  // of each segment; segment f has cells from f * 1000, except that some are shared
constexpr uint32_t kSegmentTokens = 16;  // a centre of fewer tokens means nothing: the segment stays staged until then

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
    : layer_(make_layer(kShape, spec)), faults_(faults), random_(20) {}

void Model::apply(const Operation& operation) {
  const SegmentId segment = operation.segment;
  // Cells 0..49 are numbers of both segments: segments do not share them, they only look alike.
  const Cell first = operation.cell < 50 ? operation.cell : operation.cell + 1000 * segment;
  switch (operation.kind) {
    case Kind::put: put_cells(segment, first, operation.count); break;
    case Kind::attend: attend(operation.count % 5 + 1, false); break;
    case Kind::step:
      put_cells(segment, first, 1);
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

void Model::put_cells(SegmentId segment, Cell first, uint32_t count) {
  Tokens tokens(kShape, count, random_);
  std::vector<Cell> cells;
  Segment& model = segments_[segment];
  for (uint32_t i = 0; i < count; ++i) {
    cells.push_back(first + (count - 1 - i) * 2);  // neither rising nor dense
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      const float value = float(n_put_++ % 2048) / 64.0f - 16.0f;  // distinct, and exact in f16
      std::fill_n(tokens.key(i, head), kShape.head_dim_k, value);
      std::fill_n(tokens.value(i, head), kShape.head_dim_v, -value);
      model.cells[cells.back()][head] = value;
      model.tiers[head][cells.back()] = TierName::staged;
    }
  }
  const Status put = attempt(
      [&] { return layer_->put(segment, cells, tokens.k.data(), tokens.k_stride, tokens.v.data(), tokens.v_stride); });
  if (put) return;
  for (const Cell cell : cells) forget(model, cell, cell + 1);  // they hold nothing then
}

void Model::attend(uint32_t n_tokens, bool and_commit) {
  Request request(kShape, n_tokens, random_);
  request.record = true;
  request.commit = and_commit;
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
  const Status status = attempt([&] { return layer_->commit(segment); });
  committed(segment, !status);
}

void Model::commit_all() {
  const Status status = attempt([&] { return layer_->commit_all(); });
  for (SegmentId each = 0; each < kSegments; ++each) committed(each, !status);
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
  std::vector<Cell> cells, others;
  for (const auto& [cell, values] : model.cells) cells.push_back(cell);
  for (const Cell cell : cells) others.push_back(cell + 7 * shift);
  const auto move = [&](const std::vector<Cell>& from, const std::vector<Cell>& to) -> Status {
    std::vector<uint8_t> bytes;
    if (const Status saved = layer_->save_segment(segment, from, bytes); !saved) return saved;
    auto loaded = layer_->load_segment(bytes, uint32_t(from.size()));
    return loaded ? layer_->adopt_segment(segment, std::move(loaded).value(), to) : Status(loaded.error());
  };
  if (!attempt([&] { return move(cells, others); })) return;
  if (!attempt([&] { return move(others, cells); })) RC_ASSERT(move(others, cells).ok());
}

/// Other keys in some cells, in the tier that they are in.
void Model::rotate(SegmentId segment, Cell first, uint32_t count) {
  Segment& model = segments_[segment];
  layer_->visit_keys(segment, [&](std::span<const Cell> cells, uint32_t head, std::span<float> keys) {
    uint32_t changed = 0;
    for (size_t i = 0; i < cells.size(); ++i) {
      RC_ASSERT(model.cells.count(cells[i]) == 1);
      if (cells[i] < first || cells[i] >= first + count) continue;
      // Small enough for any segment; values stay, so that a cell's key and value differ from now on.
      std::ranges::fill(keys.subspan(i * kShape.head_dim_k, kShape.head_dim_k), model.cells[cells[i]][head]);
      changed |= 1u << i;
    }
    return changed;
  });
}

void Model::lower() {
  const Spec before = layer_->spec();
  const auto lower = [&] { return layer_->lower(before.keep * 0.7, before.mixed() ? before.bits - 0.25 : 2.0); };
  if (!attempt(lower)) RC_ASSERT(lower().ok());  // stopped in the middle, it goes on where it was
  for (SegmentId segment = 0; segment < kSegments; ++segment) {
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      const TierCounts counts = count_tiers(layer_->dump(segment, head));
      if (counts.staged || before.importance == Importance::full) continue;
      RC_ASSERT(counts.hi <= policy::hi_budget(layer_->spec().keep, layer_->n_cells(segment)));
    }
  }
}

void Model::stage_in_bytes(bool on) {
  RC_ASSERT(attempt([&] {
              layer_->stage_in_bytes(on);
              return Status{};
            }).ok());
  in_bytes_ |= on;
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
  model.cells.erase(model.cells.lower_bound(first), model.cells.lower_bound(last));
  for (auto& tiers : model.tiers) tiers.erase(tiers.lower_bound(first), tiers.lower_bound(last));
}

/// What commit() must have done, given the tiers before it.
void Model::committed(SegmentId segment, bool failed) {
  const auto found = segments_.find(segment);
  if (found == segments_.end()) return;
  Segment& model = found->second;
  const Spec& spec = layer_->spec();
  for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
    const auto& before = model.tiers[head];
    uint64_t n_staged = 0, n_hi = 0;
    for (const auto& [cell, tier] : before) n_staged += tier == TierName::staged, n_hi += tier == TierName::hi;
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
    const uint64_t budget =
        spec.importance == Importance::full ? model.cells.size() : policy::hi_budget(spec.keep, model.cells.size());
    RC_ASSERT(after.hi == std::min(n_hi + n_staged, budget));
    for (const StoredToken& token : tokens) {
      const TierName was = before.at(token.cell);
      if (token.tier == TierName::hi) RC_ASSERT(was == TierName::hi || was == TierName::staged);  // nobody is promoted
      if (was == TierName::lo || was == TierName::evicted) RC_ASSERT(token.tier == was);
    }
    model.compressed[head] = true;
  }
}

void Model::check() {
  uint64_t n_elements = 0;
  TierCounts sum;
  for (SegmentId segment = 0; segment < kSegments; ++segment) {
    Segment& model = segments_[segment];
    RC_ASSERT(layer_->n_cells(segment) == model.cells.size());
    n_elements += model.cells.size() * kShape.n_kv_heads * (kShape.head_dim_k + kShape.head_dim_v);
    for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
      const std::vector<StoredToken> tokens = sorted_dump(*layer_, segment, head);
      check_head(model, head, tokens);
      const TierCounts counts = count_tiers(tokens);
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
  check_bytes(usage, sum);
}

/// The tokens of a head, by cell, are the model's cells, once each, with what was put.
void Model::check_head(Segment& model, uint32_t head, const std::vector<StoredToken>& tokens) {
  RC_ASSERT(tokens.size() == model.cells.size());
  auto expected = model.cells.begin();
  for (const StoredToken& token : tokens) {
    RC_ASSERT(token.cell == expected->first);
    check_payload(token, expected->second[head]);
    model.tiers[head][token.cell] = token.tier;
    ++expected;
  }
}

/// Constant rows are exact in every format, unless a balancer or rotation makes them vary; then they are close.
void Model::check_payload(const StoredToken& token, float value) {
  const bool evicted = token.tier == TierName::evicted;
  RC_ASSERT(token.k.size() == (evicted ? 0 : kShape.head_dim_k));
  RC_ASSERT(token.v.size() == (evicted ? 0 : kShape.head_dim_v));
  if (evicted) return;
  const Spec& spec = layer_->spec();
  const bool staged = token.tier == TierName::staged, exact = staged || !(spec.needs_calibration() || spec.hadamard);
  if (spec.balancer && !exact) return;  // its b may spread a constant row over any range
  // A centre is a half, and so is the zero of a group of k - mu: two roundings of at most 32. A rotated constant row of
  // 16 is one channel of 4 * 16 among zeros: half a step of 64 / 3 at INT2, spread over the row again by 1/4 or
  // 1/sqrt(8).
  const double k_bound = exact && !in_bytes_ ? 0.0 : spec.hadamard && !staged ? 16.0 : 2.0 * half_rounding(32.0);
  for (const float x : token.k) RC_ASSERT(std::abs(double(x) - value) <= k_bound);
  for (const float x : token.v) RC_ASSERT(std::abs(double(x) + value) <= (exact || !spec.hadamard ? 0.0 : 16.0));
}

void Model::check_bytes(const MemoryUsage& usage, const TierCounts& counts) {
  const Spec& spec = layer_->spec();
  const uint64_t elements = kShape.head_dim_k + kShape.head_dim_v;
  const uint64_t padded = 16 + 16;  // head dimensions may be padded to 16 channels
  const auto within = [](uint64_t bytes, uint64_t low, uint64_t high) { return bytes >= low && bytes <= high; };
  RC_ASSERT(within(usage.staged, counts.staged * elements * (in_bytes_ ? 1 : 2), counts.staged * padded * 2));
  const uint64_t hi_bits = format_bits(spec.hi), lo_bits = format_bits(spec.lo);
  RC_ASSERT(within(usage.hi, counts.hi * elements * hi_bits / 8, counts.hi * padded * hi_bits / 8));
  const uint64_t least = spec.mixed() ? 1 : lo_bits, most = spec.mixed() ? 4 : lo_bits;
  RC_ASSERT(within(usage.lo, counts.lo * elements * least / 8, counts.lo * padded * most / 8));
  RC_ASSERT(usage.ids >= (counts.staged + counts.hi + counts.lo) * sizeof(Cell));
  RC_ASSERT(usage.scores >= (counts.staged + counts.hi) * sizeof(float) * (spec.importance == Importance::h2o));
}

}  // namespace mikv::test
