/* mikv in C: the KV cache of one model instance, as an engine talks to it. The calls of mikv::Context (context.hpp),
 * whose comments say more, less those for an engine's own table of cells, shared accounts, estimates and reports;
 * docs/embedding.md has the whole loop, docs/glossary.md the words.
 *
 *   mikv_context_begin_step(context, tokens, n, NULL, 0)
 *     for each layer: mikv_context_store(...), mikv_context_attend(...)
 *   mikv_context_end_step(context, 1)
 *
 * Handles are opaque and belong to the caller, who frees them with the function of the same name. Pointers that are
 * passed in are borrowed for the call, unless the function says otherwise. Strings are UTF-8 and end with a zero.
 * Functions that can fail return a mikv_error; mikv_last_error_message() then has one line that names cause and remedy.
 * No C++ exception leaves a function, and none of them prints or ends the process. Any function that returns a
 * mikv_error may give MIKV_OUT_OF_MEMORY, and MIKV_INVALID_ARGUMENT for a pointer that is NULL, a layer that was not
 * declared, or a sequence out of range. Further errors are named beside each function.
 * Threads: a context is used by one thread at a time, except mikv_context_attend(), which is collective, and
 * mikv_context_fail(). Two contexts are independent.
 * Structures that have a function mikv_*_init() begin with their size, which it sets: a program that was compiled with
 * an older header keeps working with a newer library of the same SONAME. That has the major version; before 1.0 the
 * minor version too.
 */
#ifndef MIKV_MIKV_H
#define MIKV_MIKV_H

#include <stddef.h>
#include <stdint.h>

#include "mikv/export.h"
#include "mikv/version.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What kind of failure it is; the same numbers as mikv::ErrorCode. */
typedef enum mikv_error {
  MIKV_OK = 0,
  MIKV_INVALID_ARGUMENT = 1, /* an argument is out of range or contradicts another; correct the call */
  MIKV_OUT_OF_MEMORY = 2,    /* the system gives no memory, or a call's own memory exceeds the budget; use fewer or
                                shorter sequences */
  MIKV_OVER_BUDGET = 3,      /* a step, copy or load does not fit the budget; free sequences, take a smaller batch or
                                raise it */
  MIKV_DAMAGED_DATA = 4,     /* saved bytes are cut short, changed or of an unknown version */
  MIKV_MISMATCH = 5,         /* saved bytes are whole, but of another model, cache or context */
  MIKV_UNSUPPORTED = 6,      /* the call needs something that this library does not have */
  MIKV_IO = 7,               /* a file cannot be read or written */
  MIKV_ENGINE = 8            /* the engine's own error, see mikv_context_fail() */
} mikv_error;

/* Of the library at run time: "0.1.0". MIKV_VERSION_STRING is that of the headers. Static memory. */
MIKV_API const char* mikv_version(void);
/* The code in words, for example "out_of_memory". Static memory. */
MIKV_API const char* mikv_error_name(mikv_error error);
/* The message of this thread's most recent call that failed, at most 511 bytes; empty if none has. Calls that succeed
 * leave it. Valid until the thread's next failure. */
MIKV_API const char* mikv_last_error_message(void);

/* MIKV_OK if `spec` is one, for example "mikv:keep=0.2,hi=f16"; else MIKV_INVALID_ARGUMENT, and the message says what
 * is wrong with it. */
MIKV_API mikv_error mikv_check_spec(const char* spec);

/* Called with one line without a line break, on the thread that runs the call; `data` is the options' log_data. */
typedef void (*mikv_log)(const char* line, void* data);

/* Threads of the engine's, for mikv_context_attend_all(). The functions are those of GCC's OpenMP: GOMP_parallel,
 * omp_get_thread_num and omp_get_num_threads. */
typedef struct mikv_threads {
  /* Calls body(data) on n_threads threads, or on fewer, and returns when all have returned. flags: 0. */
  void (*parallel)(void (*body)(void* data), void* data, unsigned n_threads, unsigned flags);
  int (*thread)(void);    /* called within body: the number of its thread, from 0 */
  int (*n_threads)(void); /* called within body: how many threads run it */
} mikv_threads;

typedef struct mikv_context mikv_context;

typedef struct mikv_context_options {
  size_t size;          /* set by mikv_context_options_init */
  const char* spec;     /* "mikv" */
  uint32_t n_sequences; /* 1 to 4096; 1 */
  uint32_t n_cells;     /* tokens per sequence, or of all sequences together if unified; 4096 */
  uint32_t n_ubatch;    /* tokens that pass through a layer at once; 512 */
  uint32_t n_threads;   /* the most threads that attend is called by; 1 */
  int32_t unified;      /* not 0: sequences share one buffer of cells, and prefixes that are copied are stored once */
  const char* model;    /* in words, part of saved states; "" */
  uint64_t fingerprint; /* of all that must be equal for a saved state to mean the same; 0 */
  mikv_log log;         /* NULL: nothing is logged */
  void* log_data;       /* given to log with each line; NULL */
  const mikv_threads* threads; /* copied; NULL: the context starts threads of its own with the first such call */
} mikv_context_options;

/* Sets the size, and the defaults that stand at the end of each comment. NULL: does nothing, as all *_init(). */
MIKV_API void mikv_context_options_init(mikv_context_options* options);

/* Gives a new context in *context, NULL where there is an error. Strings are copied. Errors: an invalid spec, a
 * number out of range. */
MIKV_API mikv_error mikv_context_create(const mikv_context_options* options, mikv_context** context);
/* Frees the context and all that it holds. NULL: does nothing. */
MIKV_API void mikv_context_free(mikv_context* context);

/* ------------------------------------------------------------ layers */

typedef struct mikv_layer_shape {
  uint32_t n_heads;    /* query heads; a multiple of n_kv_heads, 1 to 16 of them per KV head */
  uint32_t n_kv_heads; /* 1 to 256 */
  uint32_t head_dim_k; /* channels of a key and of a query: a multiple of 8, up to 512 */
  uint32_t head_dim_v; /* channels of a value: a multiple of 8, up to 512 */
} mikv_layer_shape;

/* Declares a layer before its first step. window: tokens that a query sees, 0 for all. Errors: a negative number;
 * MIKV_UNSUPPORTED for a shape, or another one than before; MIKV_IO and MIKV_DAMAGED_DATA for the file of a spec's
 * balancer=FILE, which is read here. */
MIKV_API mikv_error mikv_context_add_layer(mikv_context* context, int32_t layer, const mikv_layer_shape* shape,
                                           uint32_t window);
/* How the layer's keys rotate with their position: pair i by angles[i] radians per position, usually
 * pow(base, -2.0 * i / head_dim_k). adjacent: pair i is channels 2i and 2i + 1, else i and i + n_angles. Copied.
 * Compression uses it, and mikv_context_shift() needs it. Errors: more pairs than a key has; an angle that is not
 * finite. */
MIKV_API mikv_error mikv_context_set_rope(mikv_context* context, int32_t layer, const float* angles, uint32_t n_angles,
                                          int32_t adjacent);

/* ------------------------------------------------------------ a step */

typedef struct mikv_token {
  int32_t sequence;    /* 0 .. n_sequences - 1 */
  int32_t position;    /* in its sequence, from 0 */
  int32_t output;      /* not 0: its logits are wanted; a prompt ends with a token that has it */
  int32_t punctuation; /* not 0: its text is punctuation; `fastgen` has a set of such tokens, others do not read it */
} mikv_token;

typedef struct mikv_shared_token {
  uint32_t token;   /* index of a token of the step */
  int32_t sequence; /* a further sequence that it belongs to; unified contexts only */
} mikv_shared_token;

/* Plans the step and makes room for it. Errors, after which there is no step and mikv_context_end_step() is not called:
 * MIKV_OVER_BUDGET; MIKV_INVALID_ARGUMENT for a sequence out of range, a negative position, an invalid entry of
 * `shared`, or no free cells; for a sequence that is incomplete, the code of what left it so. */
MIKV_API mikv_error mikv_context_begin_step(mikv_context* context, const mikv_token* tokens, size_t n_tokens,
                                            const mikv_shared_token* shared, size_t n_shared);
/* Keeps K and V of the next n_tokens tokens of the step. Row i of k is at k + i * k_stride floats and has
 * [n_kv_heads][head_dim_k] of them, and so has v. One of them may be NULL and come with the next call for the layer. At
 * most n_ubatch tokens. Stores f16: what is too large becomes the largest finite number, NaN 0. */
MIKV_API mikv_error mikv_context_store(mikv_context* context, int32_t layer, size_t n_tokens, const float* k,
                                       size_t k_stride, const float* v, size_t v_stride);

typedef enum mikv_mask_type { MIKV_MASK_OWN = 0, MIKV_MASK_F16 = 1, MIKV_MASK_F32 = 2 } mikv_mask_type;

typedef struct mikv_attend_args {
  size_t size;              /* set by mikv_attend_args_init */
  const float* q;           /* [n_tokens][n_heads][head_dim_k], channels contiguous, RoPE applied */
  size_t q_token_stride;    /* in floats */
  size_t q_head_stride;     /* in floats */
  float* out;               /* [n_tokens][n_heads][head_dim_v], channels contiguous; written */
  size_t out_token_stride;  /* in floats */
  size_t out_head_stride;   /* in floats */
  uint32_t n_tokens;        /* queries of this call: as many as the last store kept, of this sequence */
  uint32_t sequence;        /* of the tokens, where contexts are not unified */
  float scale;              /* of the logits, usually 1 / sqrt(head_dim_k); 1 */
  float softcap;            /* logits become softcap * tanh(logit / softcap); 0: off */
  const float* sinks;       /* [n_heads] attention-sink logits, or NULL */
  const float* mask_slopes; /* [n_heads] factor on the mask (ALiBi), or NULL for 1 */
  mikv_mask_type mask_type; /* MIKV_MASK_OWN: same sequence, no later position, within the layer's window */
  const void* mask;         /* otherwise additive, one row per token, one column per cell (C does not name cells) */
  size_t mask_stride_bytes; /* from row to row */
  uint32_t n_mask_cells;    /* columns; cells from here on are hidden */
} mikv_attend_args;

MIKV_API void mikv_attend_args_init(mikv_attend_args* args);

/* Attention of the tokens that the layer's last store kept. Unified: one call with all of them. Otherwise one element
 * of `calls` per sequence. A query that sees no cell gets zeros. Collective: each of n_threads threads calls it with
 * its own number and equal arguments; outputs are complete when all have returned, and only then may the next call on
 * the context start. */
MIKV_API mikv_error mikv_context_attend(mikv_context* context, int32_t layer, const mikv_attend_args* calls,
                                        size_t n_calls, uint32_t thread, uint32_t n_threads);
/* The same by n_threads and threads of the options. */
MIKV_API mikv_error mikv_context_attend_all(mikv_context* context, int32_t layer, const mikv_attend_args* calls,
                                            size_t n_calls);

typedef enum mikv_tensor_type { MIKV_F32 = 0, MIKV_F16 = 1, MIKV_BF16 = 2 } mikv_tensor_type;

/* [sequences][tokens][heads][channels] in the engine's memory; channels are contiguous. Strides are in elements. */
typedef struct mikv_tensor {
  void* data; /* of q, k and v only read */
  mikv_tensor_type type;
  size_t sequence_stride;
  size_t token_stride;
  size_t head_stride;
} mikv_tensor;

typedef struct mikv_tensor_call {
  size_t size;              /* set by mikv_tensor_call_init */
  const int32_t* sequences; /* [n_sequences], in the order of the batch */
  size_t n_sequences;
  uint32_t n_tokens;   /* of each sequence */
  float scale;         /* of the logits, usually 1 / sqrt(head_dim_k); 1 */
  float softcap;       /* as in mikv_attend_args; 0: off */
  const float* sinks;  /* [n_heads], or NULL */
  mikv_tensor q, k, v; /* RoPE applied */
  mikv_tensor out;     /* written */
} mikv_tensor_call;

MIKV_API void mikv_tensor_call_init(mikv_tensor_call* call);

/* mikv_context_store() and mikv_context_attend_all() of the step's next tokens, on tensors of other types and strides.
 * Errors: theirs; MIKV_INVALID_ARGUMENT for a key or value that is not finite, and nothing is kept then;
 * MIKV_UNSUPPORTED where the context is unified. */
MIKV_API mikv_error mikv_context_attend_tensors(mikv_context* context, int32_t layer, const mikv_tensor_call* call);

/* done 0: the step was given up, its tokens are forgotten. Errors: the first that store or attend met; the step's
 * outputs mean nothing then. */
MIKV_API mikv_error mikv_context_end_step(mikv_context* context, int32_t done);
/* The engine's own error in the present step: the step fails with MIKV_ENGINE and this message. Any thread. */
MIKV_API void mikv_context_fail(mikv_context* context, const char* message);

/* ------------------------------------------------------------ sequences, between steps */

/* In all of these p0 and p1 name positions p0 <= p < p1; negative: from the beginning, to the end. A sequence that such
 * a call leaves in part is refused by the steps that follow, with the reason, until it is removed or replaced. */

/* Forgets the tokens at these positions. sequence -1: of all. */
MIKV_API mikv_error mikv_context_remove(mikv_context* context, int32_t sequence, int32_t p0, int32_t p1);
/* Gives sequence `to` the tokens of `from`. Unified: those at these positions, stored once for both.
 * Otherwise a copy of these replaces what `to` had. Errors: MIKV_OVER_BUDGET; `to` is to be removed then. */
MIKV_API mikv_error mikv_context_copy(mikv_context* context, int32_t from, int32_t to, int32_t p0, int32_t p1);
/* Forgets all other sequences. */
MIKV_API mikv_error mikv_context_keep(mikv_context* context, int32_t sequence);
/* Moves positions by delta and rotates their keys. sequence -1: of all. Errors: MIKV_UNSUPPORTED if a layer's RoPE is
 * not known; nothing has changed then. */
MIKV_API mikv_error mikv_context_shift(mikv_context* context, int32_t sequence, int32_t p0, int32_t p1, int32_t delta);
/* Forgets everything. */
MIKV_API void mikv_context_clear(mikv_context* context);
/* The largest position of a sequence, -1 if it holds nothing. */
MIKV_API int32_t mikv_context_last_position(const mikv_context* context, int32_t sequence);
/* Compresses staged tokens of every segment that has 256 of them, or compressed ones already. */
MIKV_API mikv_error mikv_context_compress(mikv_context* context);

/* ------------------------------------------------------------ states */

/* A sequence, or all (-1), as bytes, with tokens of the caller's beside it (n_tokens may be 0). *bytes is freed by
 * mikv_free(); it is not written where there is an error. */
MIKV_API mikv_error mikv_context_save(mikv_context* context, int32_t sequence, const int32_t* tokens, size_t n_tokens,
                                      uint8_t** bytes, size_t* n_bytes);
/* Replaces what the sequence held, or all sequences (-1). Bytes may be hostile. Errors: MIKV_DAMAGED_DATA and
 * MIKV_MISMATCH, and nothing has changed then; MIKV_OVER_BUDGET or MIKV_OUT_OF_MEMORY, and the sequence is empty then.
 */
MIKV_API mikv_error mikv_context_load(mikv_context* context, int32_t sequence, const uint8_t* bytes, size_t n_bytes);
/* The tokens that were saved with a state: up to `capacity` of them in `tokens` (may be NULL), their number in
 * *n_tokens. Errors: MIKV_DAMAGED_DATA. */
MIKV_API mikv_error mikv_saved_tokens(const uint8_t* bytes, size_t n_bytes, int32_t* tokens, size_t capacity,
                                      size_t* n_tokens);
/* mikv_context_save() and _load() with a file, which is replaced as a whole and is there whole or not at all. Errors:
 * theirs, and MIKV_IO. */
MIKV_API mikv_error mikv_context_save_file(mikv_context* context, int32_t sequence, const int32_t* tokens,
                                           size_t n_tokens, const char* path);
MIKV_API mikv_error mikv_context_load_file(mikv_context* context, int32_t sequence, const char* path);
/* Frees what mikv_context_save() gave. NULL: does nothing. */
MIKV_API void mikv_free(void* memory);

/* ------------------------------------------------------------ sizes */

typedef struct mikv_memory_usage {
  size_t size;             /* set by mikv_memory_usage_init */
  uint64_t total;          /* bytes: the sum of the next eight */
  uint64_t staged;         /* payload that is not compressed yet */
  uint64_t hi;             /* codes of the hi tier */
  uint64_t lo;             /* codes of the lo tier */
  uint64_t scales;         /* scales and zeros */
  uint64_t ids;            /* cell ids and bitmaps */
  uint64_t scores;         /* importance scores */
  uint64_t calibration;    /* centres, balancers, statistics of queries */
  uint64_t slack;          /* allocated, not in use */
  uint64_t n_elements;     /* numbers of K and V that live cells stand for */
  uint64_t peak;           /* bytes: the most there ever were, transient ones included */
  double bits_per_element; /* 8 * total / n_elements */
} mikv_memory_usage;

MIKV_API void mikv_memory_usage_init(mikv_memory_usage* usage);
MIKV_API mikv_error mikv_context_memory_usage(const mikv_context* context, mikv_memory_usage* usage);
/* The most bytes that the context may hold, at once; 0: no limit. What is stored already is lowered by the next step,
 * copy or load that needs room. */
MIKV_API void mikv_context_set_budget(mikv_context* context, uint64_t bytes);
/* The spec that was asked for, in full; new text is held so where there is room. Valid until the
 * next call on the context. */
MIKV_API const char* mikv_context_spec(mikv_context* context);

/* Sequences of which a budget has lowered a part below the spec: up to `capacity` of them in `sequences` (may be NULL),
 * their number in *n_sequences. */
MIKV_API mikv_error mikv_context_lowered(const mikv_context* context, int32_t* sequences, size_t capacity,
                                         size_t* n_sequences);

typedef enum mikv_tier { MIKV_STAGED = 0, MIKV_HI = 1, MIKV_LO = 2, MIKV_EVICTED = 3 } mikv_tier;

typedef struct mikv_token_state {
  int32_t position;
  mikv_tier tier;
  float score; /* importance: the attention that it received, where the policy records it and keeps the token in hi */
} mikv_token_state;

/* The tokens of a sequence in a KV head of a layer, by position: up to `capacity` of them in `tokens` (may be NULL),
 * their number in *n_tokens. Slow: for pictures and tests. */
MIKV_API mikv_error mikv_context_tokens(const mikv_context* context, int32_t layer, uint32_t kv_head, int32_t sequence,
                                        mikv_token_state* tokens, size_t capacity, size_t* n_tokens);

#ifdef __cplusplus
}
#endif

#endif
