// CellTable: which cell holds which token of which sequences, for engines that keep no such table.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "mikv/context.hpp"

namespace mikv::context {

/// Additive mask of some tokens: a row per token, a column per cell.
struct CellMask {
  std::vector<uint16_t> values;  ///< halves
  uint32_t n_cells = 0;          ///< columns
  uint32_t n_rows = 0;
};

class CellTable : public CellOwner {
 public:
  CellTable(uint32_t n_sequences, bool unified, uint32_t n_cells);

  /// The layer's queries see `window` tokens; 0: all.
  void add_layer(int layer, uint32_t window) { windows_[layer] = window; }
  bool any_window() const;
  size_t n_cells() const { return streams_.front().cells.size(); }  ///< per stream

  /// Assigns cells to the batch's tokens. Errors: too few are free; nothing changes then.
  Status take(const Batch& batch);
  /// Before a step: nothing is taken in it yet.
  void begin_step();
  /// Frees the cells of the last take().
  void give_back();
  /// Cells of the last take(), in the order of the batch.
  std::span<const CellPlace> taken() const { return taken_; }

  /// Mask of those of the tokens first .. first + n - 1 of the last take() that are in `stream`, for layers with this
  /// window: a token sees those of its first sequence at no later position.
  CellMask mask(uint32_t stream, uint32_t window, size_t first, size_t n) const;
  /// Cells and positions of a sequence, by position.
  std::vector<std::pair<Position, Cell>> cells_of(SequenceId sequence) const;

  /// As Context's. remove() returns whether any cell was freed.
  bool remove(SequenceId sequence, Position p0, Position p1);
  void copy(SequenceId from, SequenceId to, Position p0, Position p1);
  void keep(SequenceId sequence);
  /// Returns how far tokens moved, by stream and cell.
  std::map<uint32_t, std::map<Cell, Position>> shift(SequenceId sequence, Position p0, Position p1, Position delta);
  void clear();
  Position last_position(SequenceId sequence) const;

  Result<CellsByLayer> live_cells() override;
  Result<EngineState> save(SequenceId sequence, bool partial) override;
  Status check(SequenceId sequence, const EngineState& state) override;
  Result<CellsByLayer> load(SequenceId sequence, bool partial, const EngineState& state) override;
  void drop(SequenceId sequence) override { remove(sequence, -1, -1); }

 private:
  struct Entry {
    Position position = 0;
    std::vector<SequenceId> owners;  ///< the token's first; empty: the cell is free
    bool owned_by(SequenceId sequence) const;
  };
  struct Stream {
    std::vector<Entry> cells;
    uint32_t n_used = 0;
    Cell next = 0;  ///< where the search for a free cell begins
  };

  uint32_t stream_of(SequenceId sequence) const { return unified_ ? 0 : uint32_t(sequence); }
  bool valid(SequenceId sequence) const { return sequence >= 0 && uint32_t(sequence) < n_sequences_; }
  /// Calls f(stream, cell, entry) for the cells of a sequence, or of all, at positions p0 <= p < p1.
  template <typename F>
  void for_each(SequenceId sequence, Position p0, Position p1, F f);
  /// What a state says of the cells of a stream each, for this context. Errors: damaged_data, mismatch.
  using SavedCells = std::vector<std::pair<uint32_t, Entry>>;
  Result<SavedCells> read_cells(SequenceId sequence, const EngineState& state) const;
  /// An error if there are too few cells for them once what the sequence holds is gone.
  Status check_room(SequenceId sequence, const SavedCells& saved);
  void take_cells(const Batch& batch);
  Cell take_free(Stream& stream);
  static void free_cell(Stream& stream, Entry& entry);
  /// True if a sequence's next query can see the token, also after a draft is taken back. last: each sequence's last
  /// position.
  bool in_window(const Entry& entry, uint32_t window, const std::vector<Position>& last) const;

  uint32_t n_sequences_;
  bool unified_;
  std::vector<Stream> streams_;
  std::map<int, uint32_t> windows_;
  std::vector<CellPlace> taken_;
  std::vector<SequenceId> taken_by_;
};

}  // namespace mikv::context
