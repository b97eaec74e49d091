#include "mikv/atomic_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace mikv {
namespace {

class File {
 public:
  explicit File(int descriptor) : descriptor_(descriptor) {}
  ~File() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int get() const { return descriptor_; }
  bool close() {
    const int result = ::close(descriptor_);
    descriptor_ = -1;
    return result == 0;
  }

 private:
  int descriptor_;
};

Error failed(const std::string& what, const std::string& path) {
  return Error{ErrorCode::io, "cannot " + what + " " + path + ": " + std::strerror(errno)};
}

bool write_all(int descriptor, std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(descriptor, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    bytes = bytes.subspan(size_t(n));
  }
  return true;
}

}  // namespace

Status write_file(const std::string& path, std::span<const uint8_t> bytes, bool durable) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  std::string temporary = path + ".XXXXXX";  // in the same folder, so that renaming is one step
  File file(mkostemp(temporary.data(), O_CLOEXEC));
  if (file.get() < 0) return failed("create a file beside", path);
  const auto give_up = [&](const char* what) {
    const Error error = failed(what, path);
    ::unlink(temporary.c_str());
    return error;
  };
  if (::fchmod(file.get(), S_IRUSR | S_IWUSR) != 0) return give_up("set the mode of");
  if (!write_all(file.get(), bytes)) return give_up("write");
  if (durable && ::fsync(file.get()) != 0) return give_up("sync");
  if (!file.close()) return give_up("close");
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return give_up("rename the finished file to");
  if (!durable) return {};
  // The name is durable too. The file is there already: an error here loses nothing.
  const File directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) (void)!::fsync(directory.get());
  return {};
}

Result<std::vector<uint8_t>> read_file(const std::string& path, uint64_t max_bytes) {
  const File file(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) return failed("open", path);
  struct stat about {};
  if (::fstat(file.get(), &about) != 0) return failed("look at", path);
  if (!S_ISREG(about.st_mode)) return Error{ErrorCode::io, path + " is no regular file"};
  if (uint64_t(about.st_size) > max_bytes) return Error{ErrorCode::io, path + " is too large for a saved cache"};
  std::vector<uint8_t> bytes;
  try {
    bytes.resize(size_t(about.st_size));
  } catch (const std::bad_alloc&) {
    return Error::out_of_memory("out of memory reading a file; use a smaller one");
  }
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = ::read(file.get(), bytes.data() + at, bytes.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed("read", path);
    if (n == 0) return Error{ErrorCode::io, path + " became shorter while it was read"};
    at += size_t(n);
  }
  return bytes;
}

}  // namespace mikv
