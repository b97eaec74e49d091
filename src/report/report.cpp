#include "mikv/report.hpp"

#include <exception>
#include <utility>

#include "report/file_writer.hpp"
#include "report/ledger.hpp"

namespace mikv {
namespace {

template <typename Call>
void guarded(const Log& log, Call call) noexcept {
  try {
    call();
  } catch (const std::exception& error) {
    try {
      if (log) log(std::string("the report: ") + error.what());
    } catch (const std::exception&) {  // no memory for the line either
    }
  }
}

}  // namespace

Report::Report(std::string path, Log log) : log_(std::move(log)), ledger_(std::make_unique<report::Ledger>()) {
  const auto format = path.ends_with(".prom") ? report_prometheus : report_json;
  const auto text = [format, ledger = ledger_.get()] { return format(ledger->sums()); };
  file_ = std::make_unique<report::FileWriter>(std::move(path), text, log_);
}

Report::~Report() = default;

void Report::note(const Context& context) noexcept {
  guarded(log_, [&] {
    ledger_->note(context, report::Occasion::call);
    file_->changed();
  });
}

void Report::note_step(const Context& context) noexcept {
  guarded(log_, [&] {
    if (ledger_->note(context, report::Occasion::step)) file_->changed();
  });
}

void Report::finish(const Context& context) noexcept {
  guarded(log_, [&] {
    ledger_->note(context, report::Occasion::end);
    file_->write();
    if (ledger_->forget(context)) file_->changed();
  });
}

ReportFigures Report::figures() const { return ledger_->sums(); }

}  // namespace mikv
