// mikv run: one prompt, one streamed answer, and what its cache took.
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <random>

#include "check.hpp"
#include "commands.hpp"
#include "kv_knob.hpp"
#include "model_options.hpp"
#include "progress.hpp"
#include "stopwatch.hpp"
#include "terminal.hpp"
#include "utf8.hpp"

namespace mikv::cli {
namespace {

constexpr double kWorthTelling_s = 0.05;

struct RunOptions {
  ModelOptions model;
  std::string prompt;
  std::string prompt_file;
  std::string kv = "mikv";
  KvKnob knob;
  int n_predict = -1;
  uint32_t n_ctx = 4096;
  bool n_ctx_given = false;
  uint32_t n_ubatch = 512;
  int64_t seed = -1;
  double temperature = 0.8;
  bool raw = false;
};

/// What a generation did, for the line at its end.
struct Generation {
  size_t n_prompt = 0;
  double prompt_s = 0.0;
  double compression_s = 0.0;  ///< of the prompt, before the first token is fed back
  bool compressed = false;     ///< compression was tried
  size_t n_steps = 0;          ///< tokens that were fed back; the first one comes from the prompt's logits
  size_t n_tokens = 0;
  double step_s = 0.0;
};

/// A prompt that comes through a pipe or from a file needs no flag.
bool is_given_on_standard_input() {
  struct stat status {};
  if (fstat(STDIN_FILENO, &status) != 0) return false;
  return S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode) || S_ISSOCK(status.st_mode);
}

std::string prompt_text(const RunOptions& options) {
  if (!options.prompt.empty()) return readable_text(options.prompt, "the prompt");
  const std::string file = options.prompt_file.empty() ? "-" : options.prompt_file;
  return readable_text(read_file(file, "prompt file"), "the prompt");
}

std::vector<llama::Token> prompt_tokens(const RunOptions& options, const llama::Model& model) {
  const std::string text = prompt_text(options);
  if (text.empty()) throw UserError("the prompt is empty; give it with -p TEXT or -f FILE");
  const bool templated = !options.raw && model.has_chat_template();
  if (!options.raw && !templated)
    fmt::print(stderr, "mikv: this model has no chat template; the prompt goes in as it is\n");
  auto tokens = model.tokenize(templated ? unwrap(model.chat_prompt(text)) : text, true);
  if (tokens.empty()) throw UserError("the prompt has no tokens; give it with -p TEXT or -f FILE");
  return tokens;
}

/// "hi 0.3 MiB, lo 0.7 MiB, scales 102 KiB": only what there is.
std::string describe_parts(const MemoryUsage& usage) {
  std::string parts;
  const auto part = [&](const char* name, uint64_t bytes) {
    if (bytes) parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", name, format_bytes(double(bytes)));
  };
  part("f16", usage.staged);
  part("hi", usage.hi);
  part("lo", usage.lo);
  part("scales", usage.scales);
  part("ids and scores", usage.ids + usage.scores);
  part("calibration", usage.calibration);
  part("slack", usage.slack);
  return parts;
}

/// "128 tokens at 31.8 tokens/s; prompt of 1972 at 150.2, compressed in 1.2 s"
std::string describe_speed(const Generation& done) {
  std::string text = fmt::format("{} token{}", done.n_tokens, done.n_tokens == 1 ? "" : "s");
  if (done.n_steps > 0) text += fmt::format(" at {:.1f} tokens/s", double(done.n_steps) / done.step_s);
  text += fmt::format("; prompt of {}", done.n_prompt);
  if (done.prompt_s > 0) text += fmt::format(" at {:.1f}", double(done.n_prompt) / done.prompt_s);
  if (done.compression_s >= kWorthTelling_s) text += fmt::format(", compressed in {:.1f} s", done.compression_s);
  return text;
}

void print_summary(const RunOptions& options, const llama::KvChoice& kv, const Generation& done,
                   const MemoryUsage& usage) {
  const bool compresses = !kv.stock() && !kv.spec->uncompressed();
  const bool nothing_yet = compresses && usage.n_staged_tokens > 0 && usage.n_hi_tokens + usage.n_lo_tokens == 0;
  fmt::print(stderr, "mikv: {}; KV {}, {:.0f} % of f16 ({}){}\n", describe_speed(done),
             format_bytes(double(usage.total())), 100.0 * usage.bits_per_element() / 16.0,
             format_bytes(2.0 * double(usage.n_elements)),
             nothing_yet && done.compressed ? ": nothing is compressed under 256 tokens" : "");
  if (!options.model.verbose) return;
  rusage process{};
  getrusage(RUSAGE_SELF, &process);
  fmt::print(stderr, "mikv: {:.2f} bits per element: {}; process peak {}\n", usage.bits_per_element(),
             describe_parts(usage), format_bytes(double(process.ru_maxrss) * 1024));
}

/// The answer as it grows.
class Stream {
 public:
  void add(const std::string& piece) {
    if (piece.empty()) return;
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
    at_line_start_ = piece.back() == '\n';
  }
  ~Stream() {
    if (!at_line_start_) add("\n");
  }

 private:
  bool at_line_start_ = true;
};

void compress_prompt(llama::EngineContext& context, Generation& done) {
  const Stopwatch watch;
  check(context.end_prompt());
  done.compression_s = watch.seconds();
  done.compressed = true;
}

enum class End { finished, context_full, interrupted };

End generate(const RunOptions& options, const llama::Model& model, llama::EngineContext& context, Generation& done) {
  const uint32_t seed = options.seed >= 0 ? uint32_t(options.seed) : std::random_device{}();
  llama::Sampler sampler(float(options.temperature), seed);
  const size_t n_max = options.n_predict < 0 ? SIZE_MAX : size_t(options.n_predict);
  Stream stream;
  while (done.n_tokens < n_max) {
    const llama::Token token = sampler.sample(context);
    if (model.is_end_of_generation(token)) return End::finished;
    stream.add(model.piece(token));
    ++done.n_tokens;
    if (done.n_tokens == n_max) return End::finished;
    if (context.n_past() >= context.n_ctx()) return End::context_full;
    if (!done.compressed) compress_prompt(context, done);  // the first step would, and be timed with it
    const Stopwatch watch;
    const Status step = interrupted() ? Status{} : context.decode(token);
    if (interrupted()) return End::interrupted;
    check(step);
    done.step_s += watch.seconds();
    ++done.n_steps;
  }
  return End::finished;
}

void run(const RunOptions& options) {
  auto kv = unwrap(llama::KvChoice::parse(options.kv));
  if (options.prompt.empty() && options.prompt_file.empty() && !is_given_on_standard_input())
    throw UserError("no prompt; give it with -p TEXT, with -f FILE or on standard input");
  options.knob.check();
  const auto model = options.model.load();
  if (options.knob.given()) kv = unwrap(llama::KvChoice::parse(options.knob.pick(*model)));
  const auto tokens = prompt_tokens(options, *model);
  llama::EngineOptions context_options;
  context_options.n_ctx = options.n_ctx ? options.n_ctx : model->info().n_ctx_train;
  context_options.n_ubatch = options.n_ubatch;
  context_options.n_threads = options.model.threads();
  context_options.should_stop = interrupted;
  require_fits(tokens.size(), context_options.n_ctx, "the prompt");
  if (options.n_ctx_given) warn_beyond_training(*model, options.n_ctx);
  const auto context = unwrap(llama::EngineContext::create(*model, kv, context_options));

  Generation done{.n_prompt = tokens.size()};
  const Stopwatch watch;
  size_t n_read = 0;
  {
    Progress progress("reading the prompt", double(tokens.size()));
    const Status read = context->prefill(tokens, [&](size_t n) { progress.update(double(n_read = n)); });
    progress.clear();
    if (interrupted())
      fmt::print(stderr, "mikv: interrupted while the prompt was read: {} of {} tokens\n", n_read, tokens.size());
    throw_if_interrupted();
    check(read);
  }
  done.prompt_s = watch.seconds();
  const End end = generate(options, *model, *context, done);
  if (end == End::context_full) {
    fmt::print(stderr, "mikv: stopped: the context of {} tokens is full; raise it with -c\n", context->n_ctx());
  }
  // A prompt that nothing followed is compressed too, so that the line tells the size it would have.
  if (!done.compressed && end != End::interrupted) compress_prompt(*context, done);
  print_summary(options, kv, done, context->memory_usage());
  throw_if_interrupted();
}

}  // namespace

void add_run_command(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand("run", "answer a prompt, streaming, under a chosen cache");
  options->model.add_to(*command);
  auto* prompt = command->add_option("-p,--prompt", options->prompt, "the prompt")->type_name("TEXT");
  command->add_option("-f,--file", options->prompt_file, "file with the prompt; - or nothing: standard input")
      ->type_name("FILE")
      ->excludes(prompt);
  command
      ->add_option("--kv", options->kv,
                   "the cache: a preset or spec (see `mikv info`), or llama:TYPE for stock llama.cpp")
      ->type_name("SPEC")
      ->capture_default_str();
  options->knob.add_to(*command);
  for (const char* knob : {"--kv-quality", "--kv-bits"})
    command->get_option(knob)->excludes(command->get_option("--kv"));
  command->add_option("-n,--predict", options->n_predict, "tokens to generate; -1: until the answer ends")
      ->type_name("N")
      ->capture_default_str();
  auto* n_ctx =
      command->add_option("-c,--ctx-size", options->n_ctx, "context in tokens; 0: as many as the model was trained for")
          ->type_name("N")
          ->capture_default_str();
  command->add_option("-s,--seed", options->seed, "of the sampler; -1: a random one")
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--temp", options->temperature, "temperature; 0: always the likeliest token")
      ->type_name("T")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_ubatch_option(*command, options->n_ubatch);
  command->add_flag("--raw", options->raw, "no chat template: the model continues the prompt");
  command->footer("Example:\n  mikv run -m qwen2.5-coder-0.5b -p \"Write a haiku about memory.\" --kv mikv --temp 0");
  command->callback([options, n_ctx] {
    options->n_ctx_given = n_ctx->count() > 0;
    run(*options);
  });
}

}  // namespace mikv::cli
