// RisingCells: a table of cells for one sequence that only grows. Token i is in cell i, and none is ever freed.
#pragma once

#include "mikv/context.hpp"

namespace mikv {

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
