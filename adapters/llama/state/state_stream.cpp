#include "state/state_stream.hpp"

#include <cstring>

#include "address_space.hpp"
#include "interpose/next_definition.hpp"
#include "state/cell_capture.hpp"

namespace mikv::llama {
namespace {

constexpr const char* kState = "the context's state";
constexpr const char* kNoMemory = "out of memory for the context's state; use fewer or shorter sequences";

}  // namespace

Result<EngineState> read_state(llama_context* context, llama_seq_id sequence, llama_state_seq_flags flags) {
  const bool all = sequence == kAllSequences;
  const size_t size = all ? MIKV_NEXT(llama_state_get_size)(context)
                          : MIKV_NEXT(llama_state_seq_get_size_ext)(context, sequence, flags);
  if (size == 0) return Error{"llama.cpp could not tell the size of its state"};
  const AddressSpace memory = reserve_addresses(size);
  if (!memory) return no_addresses(size, kState);
  EngineState state;
  state.size = size;
  CellCapture capture;
  const size_t written = all ? MIKV_NEXT(llama_state_get_data)(context, memory.get(), size)
                             : MIKV_NEXT(llama_state_seq_get_data_ext)(context, memory.get(), size, sequence, flags);
  if (written != size) return Error{"llama.cpp could not write its state"};
  if (!capture.whole()) return Error::out_of_memory(kNoMemory);
  const uint8_t* at = memory.get();
  for (const CellCapture::Hole& hole : capture.holes()) {
    state.words.insert(state.words.end(), at, hole.at);
    if (!state.holes.empty() &&
        state.holes.back().offset + state.holes.back().size == uint64_t(hole.at - memory.get())) {
      state.holes.back().size += hole.size;
    } else {
      state.holes.push_back({uint64_t(hole.at - memory.get()), hole.size});
    }
    at = hole.at + hole.size;
  }
  state.words.insert(state.words.end(), at, static_cast<const uint8_t*>(memory.get()) + size);
  state.cells = capture.cells();
  return state;
}

Result<CellsByLayer> write_state(llama_context* context, llama_seq_id sequence, llama_state_seq_flags flags,
                                 const EngineState& state) {
  const AddressSpace memory = reserve_addresses(state.size);
  if (!memory) return no_addresses(state.size, kState);
  const uint8_t* words = state.words.data();
  uint64_t at = 0;
  for (const EngineState::Hole& hole : state.holes) {
    std::memcpy(memory.get() + at, words, hole.offset - at);
    words += hole.offset - at;
    at = hole.offset + hole.size;
  }
  std::memcpy(memory.get() + at, words, state.size - at);
  CellCapture capture;
  const size_t read = sequence == kAllSequences
                          ? MIKV_NEXT(llama_state_set_data)(context, memory.get(), state.size)
                          : MIKV_NEXT(llama_state_seq_set_data_ext)(context, memory.get(), state.size, sequence, flags);
  if (read != state.size) return Error{"llama.cpp could not take the state (is there room for its tokens?)"};
  if (!capture.whole()) return Error::out_of_memory(kNoMemory);
  return capture.cells();
}

}  // namespace mikv::llama
