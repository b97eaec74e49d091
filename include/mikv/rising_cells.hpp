// RisingCells: the CellOwner of an engine that appends the tokens of one sequence and frees none, as a benchmark does.
// Token i is in cell i.
#pragma once

#include "mikv/context.hpp"

namespace mikv {

/// Holds no state: one may serve any number of contexts, on any threads. Calls that would free, save or load fail with
/// `unsupported`.
class RisingCells : public CellOwner {
 public:
  Result<CellsByLayer> live_cells() override { return unused(); }
  Result<EngineState> save(SequenceId, bool) override { return unused(); }
  Result<CellsByLayer> load(SequenceId, bool, const EngineState&) override { return unused(); }
  void drop(SequenceId) override {}

 private:
  static Error unused() { return Error{ErrorCode::unsupported, "no cell is ever freed here"}; }
};

}  // namespace mikv
