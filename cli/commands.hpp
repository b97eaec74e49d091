// The subcommands. Each add_* function declares its flags; what it does runs from the callback that it registers.
// Commands report bad input by throwing UserError (errors.hpp) and Ctrl-C by throwing Interrupted (interrupt.hpp).
#pragma once

namespace CLI {
class App;
}

namespace mikv::cli {

void add_run_command(CLI::App& app);
void add_eval_lines_command(CLI::App& eval);
void add_eval_kld_command(CLI::App& eval);
void add_bench_attention_command(CLI::App& bench);
void add_bench_decode_command(CLI::App& bench);
void add_bench_prefill_command(CLI::App& bench);
void add_bench_wait_command(CLI::App& bench);
void add_bench_threads_command(CLI::App& bench);
void add_info_command(CLI::App& app);
void add_model_command(CLI::App& app);
void add_tune_command(CLI::App& app);
void add_calibrate_command(CLI::App& app);
void add_estimate_command(CLI::App& app);

}  // namespace mikv::cli
