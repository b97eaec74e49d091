/* The least that a C program does with mikv: one layer, one prompt, one generated token.
 *   cc minimal.c $(pkg-config --cflags --libs mikv)
 */
#include <stdio.h>
#include <stdlib.h>

#include "mikv/mikv.h"

enum { kHeads = 14, kKvHeads = 2, kDim = 64, kPrompt = 1000 };

/* Stands for a model: some keys, values or queries for n tokens. */
static void numbers(float* data, size_t n, uint32_t seed) {
  for (size_t i = 0; i < n; ++i) {
    seed = seed * 1664525u + 1013904223u;
    data[i] = (float)(seed >> 8) / 8388608.0f - 1.0f;
  }
}

static mikv_error step(mikv_context* cache, size_t n, mikv_token* tokens, float* k, float* v, float* q, float* out) {
  const int32_t first = mikv_context_last_position(cache, 0) + 1;
  for (size_t i = 0; i < n; ++i) {
    tokens[i] = (mikv_token){.position = first + (int32_t)i, .output = i + 1 == n};
  }
  const mikv_error error = mikv_context_begin_step(cache, tokens, n, NULL, 0);
  if (error) return error;

  const size_t kv_row = kKvHeads * kDim, q_row = kHeads * kDim;
  numbers(k, n * kv_row, 1);
  numbers(v, n * kv_row, 2);
  numbers(q, n * q_row, 3);
  mikv_attend_args args;
  mikv_attend_args_init(&args);
  args.q = q;
  args.out = out;
  args.q_token_stride = args.out_token_stride = q_row;
  args.q_head_stride = args.out_head_stride = kDim;
  args.n_tokens = (uint32_t)n;
  args.scale = 0.125f;
  /* For each layer; the step keeps the first error for end_step. */
  (void)mikv_context_store(cache, 0, n, k, kv_row, v, kv_row);
  (void)mikv_context_attend(cache, 0, &args, 1, 0, 1);
  return mikv_context_end_step(cache, 1);
}

int main(void) {
  mikv_context_options options;
  mikv_context_options_init(&options);
  options.spec = "mikv";
  options.n_ubatch = kPrompt; /* the most that a step passes through a layer at once */
  const mikv_layer_shape shape = {kHeads, kKvHeads, kDim, kDim};
  mikv_context* cache = NULL;
  mikv_error error = mikv_context_create(&options, &cache);
  if (!error) error = mikv_context_add_layer(cache, 0, &shape, 0);

  mikv_token* tokens = malloc(kPrompt * sizeof *tokens);
  float* k = malloc(kPrompt * kKvHeads * kDim * sizeof *k);
  float* v = malloc(kPrompt * kKvHeads * kDim * sizeof *v);
  float* q = malloc(kPrompt * kHeads * kDim * sizeof *q);
  float* out = malloc(kPrompt * kHeads * kDim * sizeof *out);
  if (!error && !(tokens && k && v && q && out)) error = MIKV_OUT_OF_MEMORY;
  if (!error) error = step(cache, kPrompt, tokens, k, v, q, out);
  if (!error) error = step(cache, 1, tokens, k, v, q, out);

  mikv_memory_usage usage;
  mikv_memory_usage_init(&usage);
  if (!error) error = mikv_context_memory_usage(cache, &usage);
  if (error) {
    fprintf(stderr, "minimal: %s: %s\n", mikv_error_name(error), mikv_last_error_message());
  } else {
    printf("mikv %s: %.1f KiB, %.2f bits per element\n", mikv_version(), (double)usage.total / 1024.0,
           usage.bits_per_element);
  }
  free(tokens);
  free(k);
  free(v);
  free(q);
  free(out);
  mikv_context_free(cache);
  return error || usage.bits_per_element > 4.0;
}
