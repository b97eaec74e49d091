// Several caches on the same prompt: what every comparison is made of.
//
// mikv's arms share one exact prefill: it is computed once, with statistics recorded and nothing compressed, and each
// arm starts from a checkpoint of it, those of llama:TYPE:prefill=exact from a copy. Other stock llama.cpp arms, and
// specs with prefill=streaming (which compress on the way), each have a context and a prefill of their own.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "engine/engine.hpp"

namespace mikv::cli {

/// A generated token takes about as long as this many tokens of a prompt do. For estimates of the time left only.
inline constexpr double kStepInPromptTokens = 6.0;

/// An arm at the end of the prompt, compressed and ready to generate.
struct ArmStart {
  llama::EngineContext* context = nullptr;
  std::vector<float> logits;   ///< of the prompt's last token
  double prefill_s = 0.0;      ///< the whole prompt, compression included
  double compression_s = 0.0;  ///< of it
  MemoryUsage usage;           ///< after compression
};

class Arms {
 public:
  Arms(const llama::Model& model, std::vector<llama::KvChoice> choices, llama::EngineOptions options);

  size_t size() const { return choices_.size(); }
  const llama::KvChoice& choice(size_t arm) const { return choices_[arm]; }

  /// The prompt that start() brings arms to from now on.
  void set_prompt(std::vector<llama::Token> prompt);

  /// Called during prefills with the number of tokens done since the last call.
  std::function<void(size_t)> on_prefill;

  /// Brings the arm to the end of the prompt, however far it had generated. Invalidates the start of the arm before it.
  /// Throws UserError, Interrupted.
  ArmStart start(size_t arm);

  /// Prefills that a prompt takes until every arm has started from it.
  size_t n_prefills() const;

 private:
  /// A context and where it stands with the present prompt.
  struct Seat {
    std::unique_ptr<llama::EngineContext> context;
    bool has_prompt = false;
    std::vector<float> logits;
    double prefill_s = 0.0, compression_s = 0.0;
    llama::Checkpoint blank, checkpoint;  ///< of the shared seat: before and after the prompt
  };

  bool uses_shared_seat(size_t arm) const;
  void prefill(Seat& seat);
  void take_prompt(Seat& seat);
  /// With the prompt in them.
  Seat& shared_seat();
  Seat& seat_of(size_t arm);

  const llama::Model& model_;
  std::vector<llama::KvChoice> choices_;
  llama::EngineOptions options_;
  std::vector<llama::Token> prompt_;
  Seat shared_;
  std::vector<Seat> own_;
};

}  // namespace mikv::cli
