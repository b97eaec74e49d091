// mikv model get | path | list: the models that are fetched by name.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "commands.hpp"
#include "json_report.hpp"
#include "model_store.hpp"
#include "table.hpp"
#include "terminal.hpp"

namespace mikv::cli {
namespace {

void print_as_json(const std::vector<PackageModel>& models) {
  auto list = Json::array();
  for (const auto& model : models) {
    list.push_back({{"name", model.name},
                    {"description", model.description},
                    {"licence", model.licence},
                    {"size_bytes", model.size_bytes},
                    {"present", model.present},
                    {"path", model.path}});
  }
  fmt::print("{}\n", json_text(list, 2));
}

void print_as_table(const std::vector<PackageModel>& models) {
  using Align = Table::Align;
  Table table(
      {{"model", Align::left}, {"size"}, {"licence", Align::left}, {"what", Align::left}, {"file", Align::left}});
  for (const auto& model : models) {
    table.add_row({model.name, format_bytes(static_cast<double>(model.size_bytes)), model.licence, model.description,
                   model.present ? model.path : "not fetched"});
  }
  table.print(stdout);
}

void add_get(CLI::App& model) {
  auto* command = model.add_subcommand("get", "fetch models into the cache, with checksum and resume");
  auto names = std::make_shared<std::vector<std::string>>();
  command->add_option("name", *names, "one or more names from `mikv model list`")->required()->type_name("NAME");
  command->footer(
      "Example:\n  mikv model get smollm2-135m qwen2.5-coder-0.5b\n"
      "An interrupted fetch resumes where it stopped. The cache is $MIKV_CACHE, else ~/.cache/mikv.");
  command->callback([names] {
    for (const auto& name : *names) fmt::print("{}\n", fetch_model(name));
  });
}

void add_path(CLI::App& model) {
  auto* command = model.add_subcommand("path", "print a model's file, fetching it first if needed");
  auto name = std::make_shared<std::string>();
  command->add_option("name", *name, "a name from `mikv model list`")->required()->type_name("NAME");
  command->footer("Example:\n  llama-server -m \"$(mikv model path qwen2.5-coder-0.5b)\"");
  command->callback([name] { fmt::print("{}\n", fetch_model(*name)); });
}

void add_list(CLI::App& model) {
  auto* command = model.add_subcommand("list", "show the known models, and which of them are here");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "print JSON: name, description, licence, size_bytes, present, path");
  command->footer("Example:\n  mikv model list --json");
  command->callback([json] { *json ? print_as_json(package_models()) : print_as_table(package_models()); });
}

}  // namespace

void add_model_command(CLI::App& app) {
  auto* model = app.add_subcommand("model", "fetch and find the models that -m knows by name");
  model->require_subcommand(1);
  model->footer("Example:\n  mikv model get qwen2.5-coder-0.5b");
  add_get(*model);
  add_path(*model);
  add_list(*model);
}

}  // namespace mikv::cli
