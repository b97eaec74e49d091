// Peak arithmetic and memory bandwidth, in the widest vectors that the machine has (Highway compiles one copy a
// target).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "roofline.cpp"
#include "roofline.hpp"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "stopwatch.hpp"

HWY_BEFORE_NAMESPACE();
namespace mikv::cli::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Multiply-adds of 12 independent chains (4 cycles latency x 2 ports, and some to spare). Gives how many it did.
double MultiplyAdd(uint64_t n_rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.999f), term = hn::Set(d, 1e-3f);
  // Twelve different starts: equal ones would be computed once, and counted twelve times.
  const auto start = [&](float value) HWY_ATTR { return hn::Set(d, value); };
  auto a = start(1), b = start(2), c = start(3), e = start(4), f = start(5), g = start(6), h = start(7), i = start(8),
       j = start(9), k = start(10), l = start(11), m = start(12);
  for (uint64_t round = 0; round < n_rounds; ++round) {
    a = hn::MulAdd(a, factor, term), b = hn::MulAdd(b, factor, term), c = hn::MulAdd(c, factor, term);
    e = hn::MulAdd(e, factor, term), f = hn::MulAdd(f, factor, term), g = hn::MulAdd(g, factor, term);
    h = hn::MulAdd(h, factor, term), i = hn::MulAdd(i, factor, term), j = hn::MulAdd(j, factor, term);
    k = hn::MulAdd(k, factor, term), l = hn::MulAdd(l, factor, term), m = hn::MulAdd(m, factor, term);
  }
  const auto sum = hn::Add(hn::Add(hn::Add(a, b), hn::Add(c, e)),
                           hn::Add(hn::Add(hn::Add(f, g), hn::Add(h, i)), hn::Add(hn::Add(j, k), hn::Add(l, m))));
  *sink = hn::GetLane(hn::SumOfLanes(d, sum));
  return 12.0 * double(n_rounds) * double(hn::Lanes(d));
}

/// Reads n floats, n a multiple of 8 vectors.
void Read(const float* values, size_t n, float* sink) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (size_t i = 0; i + 4 * lanes <= n; i += 4 * lanes) {
    a = hn::Add(a, hn::LoadU(d, values + i));
    b = hn::Add(b, hn::LoadU(d, values + i + lanes));
    c = hn::Add(c, hn::LoadU(d, values + i + 2 * lanes));
    e = hn::Add(e, hn::LoadU(d, values + i + 3 * lanes));
  }
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e))));
}

}  // namespace mikv::cli::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mikv::cli {
namespace {

HWY_EXPORT(MultiplyAdd);
HWY_EXPORT(Read);

constexpr int kRepetitions = 5;
constexpr uint64_t kRounds = 2'000'000;
constexpr size_t kFloatsPerThread = 32u << 20;  // 128 MiB: larger than caches are

/// Best of some repetitions: a bound is what was possible once.
double best_rate(ThreadTeam& team, const std::function<double(uint32_t)>& work) {
  double best = 0.0;
  std::vector<double> amounts(team.size());
  for (int repetition = 0; repetition < kRepetitions; ++repetition) {
    double seconds = 0.0;
    team.run([&](uint32_t thread) {
      team.barrier();
      const Stopwatch watch;
      amounts[thread] = work(thread);
      team.barrier();
      if (thread == 0) seconds = watch.seconds();
    });
    double amount = 0.0;
    for (double a : amounts) amount += a;
    best = std::max(best, amount / seconds);
  }
  return best;
}

}  // namespace

double Roofline::seconds(double macs, double bytes) const {
  return std::max(macs / (1e9 * gmac_per_s), bytes / (1e9 * gbyte_per_s));
}

Roofline measure_roofline(ThreadTeam& team) {
  std::vector<float> sinks(team.size() * 64);  // a cache line and more each
  std::vector<std::vector<float>> memory(team.size());
  team.run([&](uint32_t thread) { memory[thread].assign(kFloatsPerThread, 1.0f); });
  Roofline result;
  result.gmac_per_s = 1e-9 * best_rate(team, [&](uint32_t thread) {
                        return HWY_DYNAMIC_DISPATCH(MultiplyAdd)(kRounds, &sinks[thread * 64]);
                      });
  result.gbyte_per_s = 1e-9 * best_rate(team, [&](uint32_t thread) {
                         HWY_DYNAMIC_DISPATCH(Read)(memory[thread].data(), kFloatsPerThread, &sinks[thread * 64]);
                         return double(kFloatsPerThread * sizeof(float));
                       });
  return result;
}

}  // namespace mikv::cli
#endif
