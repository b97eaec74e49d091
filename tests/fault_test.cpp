// Memory that runs out, disks that fail and processes that are killed, at every point where they can. The linker hands
// the library's calls of these functions to us (--wrap, in CMakeLists.txt).
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <new>

#include "allocation_fault.hpp"
#include "cache_model.hpp"
#include "mikv/atomic_file.hpp"

mikv::test::AllocationFault mikv::test::allocation;
using mikv::test::allocation;

namespace {

/// What happens at the nth call that changes a file.
struct FileFault {
  enum class What { nothing, error, kill } what = What::nothing;
  uint32_t left = 0;
  int error = EIO;
  bool happened = false;

  bool hits() {
    if (what == What::nothing || happened || left-- > 0) return false;
    if (what == What::kill) ::raise(SIGKILL);
    errno = error;
    return happened = true;
  }
} file;

constexpr size_t kPiece = 30000;  // files are written in pieces, so that there is a middle

}  // namespace

extern "C" {
void* __real__Znwm(size_t);
void* __real__ZnwmSt11align_val_t(size_t, std::align_val_t);
void* __real_aligned_alloc(size_t, size_t);
void* __real_mmap(void*, size_t, int, int, int, off_t);
void* __real_mremap(void*, size_t, size_t, int, ...);
int __real_mkostemp(char*, int);
int __real_fchmod(int, mode_t);
ssize_t __real_write(int, const void*, size_t);
int __real_fsync(int);
int __real_close(int);
int __real_rename(const char*, const char*);

void* __wrap__Znwm(size_t n) {
  if (allocation.hits()) throw std::bad_alloc();
  return __real__Znwm(n);
}
void* __wrap__ZnwmSt11align_val_t(size_t n, std::align_val_t alignment) {
  if (allocation.hits()) throw std::bad_alloc();
  return __real__ZnwmSt11align_val_t(n, alignment);
}
void* __wrap_aligned_alloc(size_t alignment, size_t n) {
  return allocation.hits() ? nullptr : __real_aligned_alloc(alignment, n);
}
void* __wrap_mmap(void* at, size_t n, int protection, int flags, int descriptor, off_t offset) {
  return allocation.hits() ? MAP_FAILED : __real_mmap(at, n, protection, flags, descriptor, offset);
}
void* __wrap_mremap(void* at, size_t before, size_t after, int flags, ...) {
  return allocation.hits() ? MAP_FAILED : __real_mremap(at, before, after, flags);
}

int __wrap_mkostemp(char* name, int flags) { return file.hits() ? -1 : __real_mkostemp(name, flags); }
int __wrap_fchmod(int descriptor, mode_t mode) { return file.hits() ? -1 : __real_fchmod(descriptor, mode); }
ssize_t __wrap_write(int descriptor, const void* bytes, size_t n) {
  return file.hits() ? -1
                     : __real_write(descriptor, bytes, file.what == FileFault::What::nothing ? n : std::min(n, kPiece));
}
int __wrap_fsync(int descriptor) { return file.hits() ? -1 : __real_fsync(descriptor); }
int __wrap_close(int descriptor) {
  const bool hits = file.hits();
  const int result = __real_close(descriptor);  // a close that fails has closed all the same
  if (hits) errno = file.error;
  return hits ? -1 : result;
}
int __wrap_rename(const char* from, const char* to) { return file.hits() ? -1 : __real_rename(from, to); }
}

namespace mikv::test::fault_test {
namespace {

namespace fs = std::filesystem;

class AllocationFaults : public Faults {
 public:
  /// Of the allocations of the calls to come every nth fails.
  explicit AllocationFaults(uint32_t n) : every_(n) { allocation.left = n - 1; }
  void begin() override {
    allocation.failed = false;
    allocation.counting = true;
  }
  bool end() override {
    allocation.counting = false;
    if (allocation.failed) allocation.left = every_ - 1;
    return allocation.failed;
  }

 private:
  uint32_t every_;
};

class FaultTest : public testing::TestWithParam<const char*> {};

TEST_P(FaultTest, AnySequenceOfOperationsWithoutMemory) {
  const uint64_t before = allocation.n_failed;
  const bool holds = rc::check(GetParam(), [&] {
    const auto operations = *rc::gen::container<std::vector<Operation>>(any_operation());
    AllocationFaults faults(*rc::gen::inRange(1u, 40u));
    Model model(GetParam(), &faults);
    for (const Operation& operation : operations) model.apply(operation);
  });
  EXPECT_TRUE(holds) << GetParam();
  EXPECT_GT(allocation.n_failed - before, 100u);
}

// The allocations of one long life fail, one after the other.
TEST_P(FaultTest, TheNthAllocationFails) {
  std::vector<Operation> life = {{Kind::put, 0, 0, 39}, {Kind::put, 1, 60, 30},  {Kind::stage_in_bytes, 0, 0, 10},
                                 {Kind::put, 1, 20, 9}, {Kind::attend, 0, 0, 3}, {Kind::commit_all, 0, 0, 0}};
  for (uint32_t i = 0; i < 20; ++i) life.push_back({Kind::step, i % 2, 50 + i, 1});
  for (const Operation& operation :
       {Operation{Kind::put, 0, 90, 35}, Operation{Kind::step, 0, 80, 1}, Operation{Kind::reload, 0, 0, 3},
        Operation{Kind::copy, 0, 0, 0}, Operation{Kind::trim, 0, 0, 0}, Operation{Kind::lower, 0, 0, 0},
        Operation{Kind::erase, 0, 3, 20}, Operation{Kind::step, 1, 70, 1}, Operation{Kind::commit_all, 0, 0, 0}}) {
    life.push_back(operation);
  }
  uint32_t n = 1;
  for (bool failed = true; failed; n += 1 + n / 50) {  // further apart where there are many
    SCOPED_TRACE(n);
    const uint64_t before = allocation.n_failed;
    struct Once : AllocationFaults {
      using AllocationFaults::AllocationFaults;
      bool done = false;
      void begin() override {
        if (!done) AllocationFaults::begin();
      }
      bool end() override { return !done && (done = AllocationFaults::end()); }
    } faults(n);
    Model model(GetParam(), &faults);
    for (const Operation& operation : life) ASSERT_NO_THROW(model.apply(operation));
    failed = allocation.n_failed > before;
  }
  EXPECT_GT(n, 30u);
}

INSTANTIATE_TEST_SUITE_P(Specs, FaultTest,
                         testing::Values("full", "h2o", "rtn4", "mikv-paper", "llm-int8", "fastgen", "mikv",
                                         "kivi4:group=head,residual=20", "mikv-max:prefill=streaming",
                                         "mikv:lo=int3,outlier=hadamard,keep=0.5,importance=random"),
                         name_of_spec);

class FileFaultTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mikv-fault-XXXXXX";
    folder_ = mkdtemp(name);
    path_ = folder_ + "/saved";
    ASSERT_TRUE(write_file(path_, old_).ok());
  }
  void TearDown() override {
    file = {};
    fs::remove_all(folder_);
  }
  size_t n_files() const { return size_t(std::distance(fs::directory_iterator(folder_), fs::directory_iterator())); }

  std::string folder_, path_;
  const std::vector<uint8_t> old_ = {1, 2, 3}, new_ = std::vector<uint8_t>(100000, 42);
};

TEST_F(FileFaultTest, KilledAtAnyStepOfASave) {
  uint32_t n = 0, n_old = 0;
  for (bool killed = true; killed; ++n) {
    ASSERT_TRUE(write_file(path_, old_).ok());
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      file = {FileFault::What::kill, n, 0, false};
      _exit(write_file(path_, new_).ok() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    killed = WIFSIGNALED(status);
    ASSERT_TRUE(killed || WEXITSTATUS(status) == 0);
    const auto found = read_file(path_);
    ASSERT_TRUE(found.ok()) << found.message();
    ASSERT_TRUE(found.value() == old_ || (found.value() == new_)) << "step " << n;
    n_old += found.value() == old_;
    EXPECT_TRUE(killed || found.value() == new_);
  }
  EXPECT_GE(n, 10u);  // create, mode, four pieces, sync, close, rename, sync the folder
  EXPECT_GE(n_old, 9u);
}

TEST_F(FileFaultTest, AnErrorAtAnyStepOfASave) {
  for (const int error : {EIO, ENOSPC, EDQUOT, EROFS}) {
    uint32_t n = 0;
    for (bool happened = true; happened; ++n) {
      ASSERT_TRUE(write_file(path_, old_).ok());
      file = {FileFault::What::error, n, error, false};
      const Status status = write_file(path_, new_);
      happened = file.happened;
      file = {};
      EXPECT_EQ(read_file(path_).value(), status ? new_ : old_) << "step " << n;
      EXPECT_EQ(n_files(), 1u) << "step " << n;
      EXPECT_TRUE(status.ok() || status.message().find(strerror(error)) != std::string::npos) << status.message();
    }
    EXPECT_GE(n, 10u);
  }
}

}  // namespace
}  // namespace mikv::test::fault_test
