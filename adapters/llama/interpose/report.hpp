// The report of a drop-in (--kv-report): what the KV cache takes and holds, kept up to date in a file.
#pragma once

#include <string>

namespace mikv::llama {

/// Writes the figures of all contexts to `file`, at most once a second unless `now`: JSON, or the text format of
/// Prometheus if the name ends with .prom (for the textfile collector of its node exporter). The file is replaced as a
/// whole.
void write_report(const std::string& file, bool now);

}  // namespace mikv::llama
