// mikv calibrate: measures static balancers of a model's keys on a text, for specs with balancer=FILE.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "check.hpp"
#include "commands.hpp"
#include "kld.hpp"
#include "mikv/static_balancer.hpp"
#include "model_options.hpp"
#include "progress.hpp"

namespace mikv::cli {
namespace {

// Records queries, and compresses nothing while a prompt is read.
constexpr const char* kRecordingSpec = "mikv-paper";

struct CalibrateOptions {
  ModelOptions model;
  KldOptions text;
  std::string output;
};

void run(CalibrateOptions options) {
  options.text.generate = true;  // chunks are prompts and no more
  const std::string text = options.text.contents();
  check_writable(options.output, "-o");
  const auto model = options.model.load();
  const auto chunks = options.text.chunks_of(text, *model);
  const auto context = unwrap(llama::EngineContext::create(*model, unwrap(llama::KvChoice::parse(kRecordingSpec)),
                                                           {.n_ctx = options.text.n_context + 1,
                                                            .n_ubatch = options.text.n_ubatch,
                                                            .n_threads = options.model.threads(),
                                                            .should_stop = interrupted}));
  ChannelMaxima maxima;
  {
    Progress progress("calibrate", double(chunks.size()) * options.text.n_context);
    for (size_t i = 0; i < chunks.size(); ++i) {
      context->reset();
      check(context->prefill(chunks[i], [&](size_t n) {
        progress.update(double(i * options.text.n_context + n), fmt::format("chunk {} of {}", i + 1, chunks.size()));
      }));
      check(context->add_maxima(maxima));
    }
  }
  check(write_static_balancers(options.output, balancers_of(maxima)));
  fmt::print(stderr, "mikv: wrote {}, the balancers of {} layers; name it in a spec: --kv mikv-paper:balancer={}\n",
             options.output, maxima.size(), options.output);
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  auto options = std::make_shared<CalibrateOptions>();
  options->text.n_chunks = 8;
  CLI::App* command =
      app.add_subcommand("calibrate", "measure balancers of a model's keys on a text, for specs with balancer=FILE");
  options->model.add_to(*command);
  command->add_option("--text,-f", options->text.text, "plain text to measure on")->type_name("FILE");
  command->add_option("--context", options->text.n_context, "tokens of a chunk; queries from the 224th on are counted")
      ->type_name("N")
      ->check(in_range(256, 1 << 24))
      ->capture_default_str();
  command->add_option("--chunks", options->text.n_chunks, "chunks of the text, from its beginning")
      ->type_name("N")
      ->check(in_range(1, 1 << 16))
      ->capture_default_str();
  add_ubatch_option(*command, options->text.n_ubatch);
  command->add_option("-o,--output", options->output, "the file to write")->type_name("FILE")->required();
  command->footer(
      "Example:\n  mikv calibrate -m qwen2.5-coder-0.5b --text book.txt -o qwen.balancers\n"
      "  mikv eval kld -m qwen2.5-coder-0.5b --text other.txt --kv mikv-paper,mikv-paper:balancer=qwen.balancers");
  command->callback([options] { run(*options); });
}

}  // namespace mikv::cli
