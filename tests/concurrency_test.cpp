// The calls that all threads of a step make together, for the thread sanitizer: an engine's threads write their shares
// of K and V, meet, attend and commit, over a prompt and many generation steps. And independent layers on independent
// threads.
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cmath>
#include <thread>

#include "test_attention.hpp"

namespace mikv::test::concurrency_test {
namespace {

constexpr LayerShape kShape{6, 3, 32, 40};
constexpr uint32_t kPrompt = 50, kSteps = 40;

/// A prompt and generation steps by n_threads threads that live throughout, as an engine's pool does.
/// Returns the outputs of all steps; `layer` is left as it is after them.
std::vector<float> generate(LayerCache& layer, uint32_t n_threads) {
  Random random(70);
  struct Step {
    Tokens tokens;
    Request request;
    std::vector<Cell> cells;
    std::vector<float> out;
  };
  std::vector<Step> steps;
  for (uint32_t i = 0; i <= kSteps; ++i) {
    const uint32_t n = i == 0 ? kPrompt : i % 9 == 0 ? 5 : 1;  // now and then several tokens, as speculation gives
    const Cell first = i == 0 ? 0 : steps.back().cells.back() + 1;
    Step step{Tokens(kShape, n, random), Request(kShape, n, random), cell_range(first, n), {}};
    step.out.resize(size_t{n} * kShape.n_heads * kShape.head_dim_v);
    step.request.set_causal(Mask::Type::f32, first + n, first);
    steps.push_back(std::move(step));
  }

  Workspace workspace(n_threads);
  std::barrier barrier(ptrdiff_t{n_threads});
  std::atomic<uint32_t> n_failed = 0;
  const auto work = [&](uint32_t thread) {
    for (uint32_t i = 0; i < steps.size(); ++i) {
      Step& step = steps[i];
      if (thread == 0 && !layer.stage(0, step.cells).ok()) ++n_failed;
      barrier.arrive_and_wait();
      layer.write_k(0, step.tokens.k.data(), step.tokens.k_stride, thread, n_threads);
      layer.write_v(0, step.tokens.v.data(), step.tokens.v_stride, thread, n_threads);
      barrier.arrive_and_wait();
      LayerAttendArgs args;
      args.q = step.request.q.data();
      args.q_token_stride = step.request.q_token_stride();
      args.q_head_stride = step.request.q_head_stride();
      args.out = step.out.data();
      args.out_head_stride = kShape.head_dim_v;
      args.out_token_stride = kShape.n_heads * kShape.head_dim_v;
      args.n_tokens = step.request.n_tokens;
      args.scale = step.request.scale;
      args.mask = {Mask::Type::f32, step.request.mask.data(), step.request.mask_cells * sizeof(float),
                   step.request.mask_cells};
      args.commit = i > 0;  // the prompt is committed apart, below
      if (!layer.attend(args, workspace, thread, n_threads).ok()) ++n_failed;
      barrier.arrive_and_wait();
      if (thread == 0 && i == 0 && !layer.commit(0).ok()) ++n_failed;
      if (i == kSteps / 2) {
        const auto turn = [](std::span<const Cell> cells, uint32_t, std::span<float> keys) {
          for (float& channel : keys) channel = -channel;
          return (1u << cells.size()) - 1;
        };
        layer.visit_keys(0, turn, thread, n_threads);
        barrier.arrive_and_wait();
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t thread = 1; thread < n_threads; ++thread) threads.emplace_back(work, thread);
  work(0);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_failed, 0u);

  std::vector<float> out;
  for (const Step& step : steps) out.insert(out.end(), step.out.begin(), step.out.end());
  return out;
}

TEST(ConcurrencyTest, ThreadsOfAStepGiveWhatOneThreadGives) {
  for (const char* spec :
       {"full", "h2o", "mikv-paper", "mikv", "mikv-max", "random:keep=0.5", "rtn3", "kivi2:group=head,residual=32"}) {
    SCOPED_TRACE(spec);
    const auto alone = make_layer(kShape, spec);
    const std::vector<float> expected = generate(*alone, 1);
    for (const uint32_t n_threads : {2u, 4u}) {
      const auto layer = make_layer(kShape, spec);
      const std::vector<float> out = generate(*layer, n_threads);
      ASSERT_EQ(out.size(), expected.size());
      // The order of additions differs by threads, and scores with it; a score that is another by rounding could demote
      // another token only if two were equal to 6 digits, which this data has not.
      for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 1e-4) << "element " << i;
      for (uint32_t head = 0; head < kShape.n_kv_heads; ++head) {
        const auto a = sorted_dump(*layer, 0, head), b = sorted_dump(*alone, 0, head);
        ASSERT_EQ(a.size(), b.size());
        for (size_t i = 0; i < a.size(); ++i) {
          ASSERT_EQ(a[i].tier, b[i].tier) << "cell " << a[i].cell << " head " << head;
          ASSERT_EQ(a[i].k, b[i].k);
          ASSERT_EQ(a[i].v, b[i].v);
        }
      }
    }
  }
}

// More threads than KV heads, tokens or blocks: some have nothing to do and must still arrive.
TEST(ConcurrencyTest, MoreThreadsThanWork) {
  const LayerShape shape{2, 1, 16, 16};
  Random random(71);
  for (const char* spec : {"full", "mikv:keep=0.5"}) {
    const auto layer = make_layer(shape, spec);
    for (uint32_t step = 0; step < 25; ++step) {
      put(*layer, 0, cell_range(step, 1), Tokens(shape, 1, random));
      Request request(shape, 1, random);
      const Expected expected = expect(*layer, {0}, request);
      request.record = request.commit = true;
      ASSERT_TRUE(matches(run(*layer, request, 8), expected)) << spec << " step " << step;
    }
    EXPECT_EQ(layer->n_cells(0), 25u);
  }
}

// A generation step is cut by the length of the context. Threads that enter it late, when a faster one has committed a
// head already, must cut it in the same way as the others.
TEST(ConcurrencyTest, StepsAcrossACutOfALongContext) {
  const LayerShape shape{2, 2, 16, 16};
  Random random(72);
  for (const char* spec : {"rtn4", "mikv:keep=0.5", "h2o:keep=0.99"}) {
    const auto layer = make_layer(shape, spec);
    put(*layer, 0, cell_range(0, 4080), Tokens(shape, 4080, random));
    commit(*layer, 0);
    for (Cell cell = 4080; cell < 4110; ++cell) {
      put(*layer, 0, cell_range(cell, 1), Tokens(shape, 1, random));
      Request request(shape, 1, random);
      const Expected expected = expect(*layer, {0}, request);
      request.record = request.commit = true;
      ASSERT_TRUE(matches(run(*layer, request, 4), expected)) << spec << ", cell " << cell;
      ASSERT_EQ(layer->n_staged(0), 0u);
    }
  }
}

// A server with four slots on eight threads: prompts come while others generate, slots end and begin anew, one is
// copied and one is saved; what each slot reads is what it reads on one thread.
TEST(ConcurrencyTest, FourSlotsOnEightThreads) {
  constexpr uint32_t n_slots = 4, n_steps = 30;
  for (const char* spec : {"mikv", "mikv-paper:prefill=streaming", "full"}) {
    SCOPED_TRACE(spec);
    const auto serve = [&](uint32_t n_threads) {
      const auto layer = make_layer(kShape, spec);
      Random random(73);
      std::vector<float> all;
      for (uint32_t step = 0; step < n_steps; ++step) {
        std::vector<Request> requests;
        for (SegmentId slot = 0; slot < n_slots; ++slot) {
          if ((step + 7 * slot) % 13 == 12) layer->erase_if(slot, 0, kMaxCells);  // its request was cancelled
          const uint32_t n = layer->n_cells(slot) ? 1 : 20 + 10 * slot;
          put(*layer, slot, cell_range(slot * 1000 + step * 64, n), Tokens(kShape, n, random));
          Request& request = requests.emplace_back(kShape, n, random);
          request.segments = {slot};
          request.commit = n == 1;
        }
        for (const auto& out : run_together(*layer, requests, n_threads)) all.insert(all.end(), out.begin(), out.end());
        if (step % 10 == 9) {
          EXPECT_TRUE(layer->copy_segment(2, 5).ok());
          std::vector<uint8_t> saved;
          EXPECT_TRUE(layer->save_segment(1, cell_range(1000, 2000), saved).ok());
        }
      }
      return all;
    };
    const std::vector<float> alone = serve(1), together = serve(8);
    ASSERT_EQ(alone.size(), together.size());
    for (size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(together[i], alone[i], 1e-3) << "element " << i;
  }
}

TEST(ConcurrencyTest, IndependentLayersOnIndependentThreads) {
  std::vector<std::vector<float>> outs(4);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < outs.size(); ++i)
    threads.emplace_back([&outs, i] { outs[i] = generate(*make_layer(kShape, "mikv"), 1); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& out : outs) EXPECT_EQ(out, outs[0]);
}

}  // namespace
}  // namespace mikv::test::concurrency_test
