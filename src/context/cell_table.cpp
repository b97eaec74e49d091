#include "context/cell_table.hpp"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "context/sequences.hpp"
#include "session/byte_stream.hpp"

namespace mikv::context {
namespace {

constexpr uint16_t kVisible = 0x0000, kHidden = 0xfc00;  // 0 and -inf as halves

// The longest draft that an engine may take back: what the tokens before it see is not forgotten while it is there.
constexpr int64_t kDraftTokens = 64;

// What a saved state says of a cell: its position, then its owners.
constexpr uint32_t kMaxOwners = 4096;

}  // namespace

CellTable::CellTable(uint32_t n_sequences, bool unified, uint32_t n_cells)
    : n_sequences_(n_sequences), unified_(unified), streams_(unified ? 1 : n_sequences) {
  for (Stream& stream : streams_) stream.cells.resize(n_cells);
}

bool CellTable::Entry::owned_by(SequenceId sequence) const {
  return std::find(owners.begin(), owners.end(), sequence) != owners.end();
}

bool CellTable::any_window() const {
  return std::ranges::any_of(windows_, [](const auto& entry) { return entry.second > 0; });
}

template <typename F>
void CellTable::for_each(SequenceId sequence, Position p0, Position p1, F f) {
  if (p1 < 0) p1 = std::numeric_limits<Position>::max();
  for (uint32_t s = 0; s < streams_.size(); ++s) {
    if (sequence != kAllSequences && s != stream_of(sequence)) continue;
    for (Cell cell = 0; cell < streams_[s].cells.size(); ++cell) {
      Entry& entry = streams_[s].cells[cell];
      if (entry.owners.empty() || entry.position < p0 || entry.position >= p1) continue;
      if (sequence == kAllSequences || entry.owned_by(sequence)) f(s, cell, entry);
    }
  }
}

Cell CellTable::take_free(Stream& stream) {
  while (!stream.cells[stream.next].owners.empty()) stream.next = Cell((stream.next + 1) % stream.cells.size());
  ++stream.n_used;
  return stream.next;
}

void CellTable::free_cell(Stream& stream, Entry& entry) {
  entry.owners.clear();
  stream.next = std::min(stream.next, Cell(&entry - stream.cells.data()));  // low numbers keep bitmaps short
  --stream.n_used;
}

Status CellTable::take(const Batch& batch) {
  std::map<uint32_t, uint32_t> wanted;
  for (const Batch::Token& token : batch.tokens) {
    if (!valid(token.sequence)) return no_sequence(token.sequence, n_sequences_);
    if (token.position < 0) return Error{"position " + std::to_string(token.position) + " of the batch is negative"};
    ++wanted[stream_of(token.sequence)];
  }
  for (const auto& [stream, n] : wanted) {
    const size_t n_free = streams_[stream].cells.size() - streams_[stream].n_used;
    if (n > n_free) {
      return Error{"no free cells for " + std::to_string(n) + " tokens (" + std::to_string(n_free) +
                   " left); remove tokens or create the context with more cells"};
    }
  }
  begin_step();
  taken_.reserve(batch.tokens.size());
  taken_by_.reserve(batch.tokens.size());
  try {
    take_cells(batch);
  } catch (const std::bad_alloc&) {  // all or none
    give_back();
    throw;
  }
  return {};
}

void CellTable::take_cells(const Batch& batch) {
  for (const Batch::Token& token : batch.tokens) {
    Entry entry{token.position, {token.sequence}};
    const uint32_t s = stream_of(token.sequence);
    const Cell cell = take_free(streams_[s]);
    streams_[s].cells[cell] = std::move(entry);
    taken_.push_back({s, cell});
    taken_by_.push_back(token.sequence);
  }
  for (const auto& [token, sequence] : batch.shared) {
    if (token >= taken_.size() || !valid(sequence)) continue;  // the step plan refuses what is out of range
    Entry& entry = streams_[0].cells[taken_[token].cell];
    if (!entry.owned_by(sequence)) entry.owners.push_back(sequence);
  }
}

void CellTable::begin_step() {
  taken_.clear();
  taken_by_.clear();
}

void CellTable::give_back() {
  for (const CellPlace& place : taken_) {
    Entry& entry = streams_[place.stream].cells[place.cell];
    if (!entry.owners.empty()) free_cell(streams_[place.stream], entry);
  }
  taken_.clear();
  taken_by_.clear();
}

CellMask CellTable::mask(uint32_t stream, uint32_t window, size_t first, size_t n) const {
  const std::vector<Entry>& cells = streams_[stream].cells;
  CellMask mask;
  for (Cell cell = 0; cell < cells.size(); ++cell) {
    if (!cells[cell].owners.empty()) mask.n_cells = cell + 1;
  }
  const size_t end = std::min(first + n, taken_.size());
  for (size_t i = first; i < end; ++i) mask.n_rows += taken_[i].stream == stream;
  mask.values.reserve(size_t{mask.n_rows} * mask.n_cells);
  for (size_t i = first; i < end; ++i) {
    if (taken_[i].stream != stream) continue;
    const Position at = cells[taken_[i].cell].position;
    for (Cell cell = 0; cell < mask.n_cells; ++cell) {
      const Entry& entry = cells[cell];
      const bool in_reach = window == 0 || int64_t{at} - entry.position < int64_t{window};
      const bool seen = entry.position <= at && in_reach && entry.owned_by(taken_by_[i]);
      mask.values.push_back(seen ? kVisible : kHidden);
    }
  }
  return mask;
}

std::vector<std::pair<Position, Cell>> CellTable::cells_of(SequenceId sequence) const {
  std::vector<std::pair<Position, Cell>> cells;
  const std::vector<Entry>& of_stream = streams_[stream_of(sequence)].cells;
  for (Cell cell = 0; cell < of_stream.size(); ++cell) {
    if (of_stream[cell].owned_by(sequence)) cells.emplace_back(of_stream[cell].position, cell);
  }
  std::ranges::sort(cells);
  return cells;
}

bool CellTable::remove(SequenceId sequence, Position p0, Position p1) {
  bool freed = false;
  for_each(sequence, p0, p1, [&](uint32_t s, Cell, Entry& entry) {
    if (sequence != kAllSequences) std::erase(entry.owners, sequence);
    if (sequence != kAllSequences && !entry.owners.empty()) return;
    entry.owners.assign(1, 0);  // free_cell counts it
    free_cell(streams_[s], entry);
    freed = true;
  });
  return freed;
}

void CellTable::copy(SequenceId from, SequenceId to, Position p0, Position p1) {
  if (unified_) {
    for_each(from, p0, p1, [&](uint32_t, Cell, Entry& entry) {
      if (!entry.owned_by(to)) entry.owners.push_back(to);
    });
    return;
  }
  Stream copied = streams_[stream_of(from)];  // may throw; nothing changes then
  for (Entry& entry : copied.cells) std::replace(entry.owners.begin(), entry.owners.end(), from, to);
  streams_[stream_of(to)] = std::move(copied);
  const Position end = p1 < 0 ? std::numeric_limits<Position>::max() : p1;
  remove(to, -1, std::max<Position>(p0, 0));
  if (end < std::numeric_limits<Position>::max()) remove(to, end, -1);
}

void CellTable::keep(SequenceId sequence) {
  for (SequenceId other = 0; valid(other); ++other) {
    if (other != sequence) remove(other, -1, -1);
  }
}

std::map<uint32_t, std::map<Cell, Position>> CellTable::shift(SequenceId sequence, Position p0, Position p1,
                                                              Position delta) {
  std::map<uint32_t, std::map<Cell, Position>> moved;
  for_each(sequence, p0, p1, [&](uint32_t s, Cell cell, Entry& entry) {
    const int64_t position = int64_t{entry.position} + delta;
    if (position < 0 || position > std::numeric_limits<Position>::max()) return free_cell(streams_[s], entry);
    entry.position = Position(position);
    moved[s][cell] = delta;
  });
  return moved;
}

void CellTable::clear() {
  for (Stream& stream : streams_) {
    for (Entry& entry : stream.cells) entry.owners.clear();
    stream.n_used = 0;
    stream.next = 0;
  }
  taken_.clear();
  taken_by_.clear();
}

Position CellTable::last_position(SequenceId sequence) const {
  Position last = -1;
  if (!valid(sequence)) return last;
  for (const Entry& entry : streams_[stream_of(sequence)].cells) {
    if (entry.owned_by(sequence)) last = std::max(last, entry.position);
  }
  return last;
}

bool CellTable::in_window(const Entry& entry, uint32_t window, const std::vector<Position>& last) const {
  if (window == 0) return true;
  return std::ranges::any_of(entry.owners, [&](SequenceId sequence) {
    return int64_t{last[size_t(sequence)]} - entry.position < int64_t{window} + kDraftTokens;
  });
}

Result<CellsByLayer> CellTable::live_cells() {
  std::vector<Position> last;
  for (SequenceId s = 0; any_window() && valid(s); ++s) last.push_back(last_position(s));
  CellsByLayer cells;
  for (const auto& [layer, window] : windows_) {
    std::vector<CellPlace>& of_layer = cells[layer];
    for_each(kAllSequences, -1, -1, [&, window = window](uint32_t s, Cell cell, Entry& entry) {
      if (in_window(entry, window, last)) of_layer.push_back({s, cell});
    });
  }
  return cells;
}

Result<EngineState> CellTable::save(SequenceId sequence, bool partial) {
  if (partial) return Error{ErrorCode::unsupported, "partial states need an engine that keeps the cells"};
  EngineState state;
  session::ByteWriter out(state.words);
  std::vector<CellPlace> places;
  for_each(sequence, -1, -1, [&](uint32_t s, Cell cell, Entry& entry) {
    places.push_back({s, cell});
    out.put(s);
    out.put(entry.position);
    const auto owners = sequence == kAllSequences ? entry.owners : std::vector<SequenceId>{0};
    out.put(uint32_t(owners.size()));
    out.put_array(std::span<const SequenceId>(owners));
  });
  for (const auto& [layer, window] : windows_) state.cells[layer] = places;
  state.size = state.words.size();
  return state;
}

Result<CellTable::SavedCells> CellTable::read_cells(SequenceId sequence, const EngineState& state) const {
  const Error damaged{ErrorCode::damaged_data, "damaged (its cells)"};
  session::ByteReader in(state.words);
  SavedCells entries;
  while (in.ok() && in.left()) {
    uint32_t s = in.get<uint32_t>();
    Entry entry;
    entry.position = in.get<Position>();
    const uint32_t n_owners = in.get<uint32_t>();
    if (n_owners == 0 || n_owners > kMaxOwners) return damaged;
    entry.owners = in.get_array<SequenceId>(n_owners);
    if (!in.ok() || entry.position < 0) return damaged;
    if (sequence != kAllSequences) entry.owners = {sequence}, s = stream_of(sequence);
    if (unified_ && s > 0) {
      return Error{ErrorCode::mismatch, "of a context with a stream per sequence, and this one is unified"};
    }
    if (!unified_ && (entry.owners.size() != 1 || uint32_t(entry.owners[0]) != s)) {
      return Error{ErrorCode::mismatch, "of a unified context, and this one has a stream per sequence"};
    }
    if (!std::ranges::all_of(entry.owners, [&](SequenceId owner) { return valid(owner); })) {
      return Error{ErrorCode::mismatch, "of a context with more sequences than this one has"};
    }
    entries.emplace_back(s, std::move(entry));
  }
  if (!in.ok()) return damaged;
  return entries;
}

Status CellTable::check_room(SequenceId sequence, const SavedCells& saved) {
  std::vector<uint64_t> n_wanted(streams_.size()), n_free(streams_.size());
  for (const auto& [s, entry] : saved) ++n_wanted[s];
  for (uint32_t s = 0; s < streams_.size(); ++s) n_free[s] = streams_[s].cells.size() - streams_[s].n_used;
  for_each(sequence, -1, -1, [&](uint32_t s, Cell, const Entry& entry) {
    n_free[s] += sequence == kAllSequences || entry.owners.size() == 1;  // what load() frees
  });
  for (uint32_t s = 0; s < streams_.size(); ++s) {
    if (n_wanted[s] <= n_free[s]) continue;
    return Error{ErrorCode::mismatch, "of " + std::to_string(n_wanted[s]) + " tokens, and there are free cells for " +
                                          std::to_string(n_free[s])};
  }
  return {};
}

Status CellTable::check(SequenceId sequence, const EngineState& state) {
  const auto entries = read_cells(sequence, state);
  return entries ? check_room(sequence, entries.value()) : Status(entries.error());
}

Result<CellsByLayer> CellTable::load(SequenceId sequence, bool, const EngineState& state) {
  auto entries = read_cells(sequence, state);
  if (!entries) return entries.error();
  if (const Status status = check_room(sequence, entries.value()); !status) return status.error();
  std::vector<CellPlace> places;
  places.reserve(entries.value().size());
  remove(sequence, -1, -1);
  for (auto& [s, entry] : entries.value()) {
    const Cell cell = take_free(streams_[s]);
    streams_[s].cells[cell] = std::move(entry);
    places.push_back({s, cell});
  }
  CellsByLayer cells;
  for (const auto& [layer, window] : windows_) cells[layer] = places;
  return cells;
}

}  // namespace mikv::context
