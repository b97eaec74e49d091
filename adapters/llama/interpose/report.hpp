// The report of a drop-in (--kv-report): size and content of the KV cache, kept up to date in a file.
#pragma once

#include <string>

namespace mikv::llama {

/// Writes the figures of all contexts to `file`, at most once per second unless `now`: JSON, or, if the name ends with
/// .prom, the text format of Prometheus (for the textfile collector of its node exporter). Replaces the file as a
/// whole.
void write_report(const std::string& file, bool now);

}  // namespace mikv::llama
