// LayerCache::commit: compression of what is staged, by KV heads, which do not depend on each other.
#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "layer/layer_impl.hpp"
#include "layer/share_jobs.hpp"

namespace mikv {
namespace {

struct Job {
  tier::HeadStore* head;
  const Spec* spec;
  uint64_t n_live;
};

// Fewer tokens than this are compressed sooner than a thread is started.
constexpr uint64_t kTokensPerThread = 256;

void add_jobs(tier::SegmentStore& segment, uint32_t from, std::vector<Job>& jobs) {
  for (tier::HeadStore& head : segment.heads()) {
    if (head.commits(segment.spec(), segment.n_live(), from))
      jobs.push_back({&head, &segment.spec(), segment.n_live()});
  }
}

// False if memory ran out; the other heads are done.
bool run(std::span<const Job> jobs, uint32_t from, uint32_t n_threads, uint32_t n_most) {
  std::atomic<bool> done{true};
  uint64_t n_tokens = 0;
  for (const Job& job : jobs) n_tokens += std::min(n_most, job.head->staged.size());
  const uint64_t n_useful = (n_tokens + kTokensPerThread - 1) / kTokensPerThread;
  share_jobs(jobs.size(), std::min<uint64_t>(n_threads, n_useful), [&](const auto& next) {
    tier::CommitScratch scratch;  // not kept: after a long prompt it is as large as several per cent of the cache
    for (size_t i; (i = next()) < jobs.size();) {
      try {
        jobs[i].head->commit(*jobs[i].spec, jobs[i].n_live, from, scratch, n_most);
      } catch (const std::bad_alloc&) {
        done = false;
      }
    }
  });
  return done;
}

Error out_of_memory() {
  return Error::out_of_memory(
      "out of memory compressing the KV cache; its tokens stay in f16. Use fewer or shorter sequences");
}

}  // namespace

Status LayerCache::commit(std::span<LayerCache* const> layers, SegmentId segment, uint32_t from, uint32_t n_threads,
                          uint32_t n_most) {
  bool done = true;
  try {
    std::vector<Job> jobs;
    for (const LayerCache* layer : layers) {
      if (tier::SegmentStore* store = layer->impl_->segment(segment)) add_jobs(*store, from, jobs);
      if (layer->impl_->account->room() == UINT64_MAX) continue;
      done &= run(jobs, from, n_threads, n_most);
      jobs.clear();
    }
    done &= run(jobs, from, n_threads, n_most);
  } catch (const std::bad_alloc&) {
    return out_of_memory();
  }
  return done ? Status() : out_of_memory();
}

Status LayerCache::commit(SegmentId segment, uint32_t from) {
  LayerCache* const self = this;
  return commit(std::span(&self, 1), segment, from, 1);
}

}  // namespace mikv
