// mikv.h over Context: arguments to spans, Status to mikv_error, and no exception past this file.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include "mikv/atomic_file.hpp"
#include "mikv/context.hpp"
#include "mikv/inspect.hpp"
#include "mikv/mikv.h"
#include "mikv/tensors.hpp"

struct mikv_context {
  std::unique_ptr<mikv::Context> context;
  std::string spec;  ///< what mikv_context_spec() gave
};

namespace {

using mikv::ErrorCode;
using mikv::Status;

// The numbers of one language are those of the other.
static_assert(int(MIKV_OK) == int(ErrorCode::ok) && int(MIKV_INVALID_ARGUMENT) == int(ErrorCode::invalid_argument) &&
              int(MIKV_OUT_OF_MEMORY) == int(ErrorCode::out_of_memory) &&
              int(MIKV_OVER_BUDGET) == int(ErrorCode::over_budget) &&
              int(MIKV_DAMAGED_DATA) == int(ErrorCode::damaged_data) &&
              int(MIKV_MISMATCH) == int(ErrorCode::mismatch) && int(MIKV_UNSUPPORTED) == int(ErrorCode::unsupported) &&
              int(MIKV_IO) == int(ErrorCode::io) && int(MIKV_ENGINE) == int(ErrorCode::engine));
static_assert(int(MIKV_STAGED) == int(mikv::TokenTier::staged) && int(MIKV_HI) == int(mikv::TokenTier::hi) &&
              int(MIKV_LO) == int(mikv::TokenTier::lo) && int(MIKV_EVICTED) == int(mikv::TokenTier::evicted));
static_assert(int(MIKV_F32) == int(mikv::TensorType::f32) && int(MIKV_F16) == int(mikv::TensorType::f16) &&
              int(MIKV_BF16) == int(mikv::TensorType::bf16));

// Fixed size: telling that memory ran out must need none.
thread_local char last_message[512];

mikv_error refuse(mikv_error error, const char* message) noexcept {
  std::strncpy(last_message, message, sizeof last_message - 1);
  return error;
}

mikv_error told(const Status& status) noexcept {
  return status ? MIKV_OK : refuse(mikv_error(status.code()), status.message().c_str());
}

// Runs a call that gives a Status.
template <typename Call>
mikv_error run(Call call) noexcept {
  try {
    return told(call());
  } catch (const std::bad_alloc&) {
    return refuse(MIKV_OUT_OF_MEMORY, "out of memory; use fewer or shorter sequences");
  } catch (const std::exception& error) {
    return refuse(MIKV_INVALID_ARGUMENT, error.what());
  } catch (...) {  // a callback of the engine's
    return refuse(MIKV_ENGINE, "a function of the engine's threw what is no std::exception");
  }
}

Status null_argument(const char* what) { return mikv::Error{std::string(what) + " must not be null"}; }

// The size that the caller's structure says it has may be smaller than ours, never 0: what it lacks has its default.
template <typename T>
bool read_struct(const T* from, T& to) {
  if (!from || from->size < sizeof(size_t)) return false;
  const size_t n = std::min(from->size, sizeof(T));
  std::memcpy(&to, from, n);
  to.size = sizeof(T);
  return true;
}

mikv::AttendArgs arguments(const mikv_attend_args& from) {
  mikv::AttendArgs to;
  to.q = from.q;
  to.q_token_stride = from.q_token_stride;
  to.q_head_stride = from.q_head_stride;
  to.out = from.out;
  to.out_token_stride = from.out_token_stride;
  to.out_head_stride = from.out_head_stride;
  to.n_tokens = from.n_tokens;
  to.stream = from.sequence;
  to.scale = from.scale;
  to.softcap = from.softcap;
  to.sinks = from.sinks;
  to.mask_slopes = from.mask_slopes;
  if (from.mask_type != MIKV_MASK_OWN) {
    const auto type = from.mask_type == MIKV_MASK_F16 ? mikv::Mask::Type::f16 : mikv::Mask::Type::f32;
    to.mask = {type, from.mask, from.mask_stride_bytes, from.n_mask_cells};
  }
  return to;
}

// The engine's threads as mikv::RunThreads.
mikv::RunThreads runner(const mikv_threads& threads) {
  using Work = std::function<void(uint32_t, uint32_t)>;
  return [threads](uint32_t n_threads, const Work& work) {
    const struct Body {
      const mikv_threads& threads;
      const Work& work;
    } body{threads, work};
    const auto run_body = [](void* data) {
      const Body& of = *static_cast<const Body*>(data);
      of.work(uint32_t(of.threads.thread()), uint32_t(of.threads.n_threads()));
    };
    threads.parallel(run_body, const_cast<Body*>(&body), n_threads, 0);
  };
}

Status read_calls(const mikv_attend_args* calls, size_t n_calls, std::vector<mikv::AttendArgs>& to) {
  to.clear();
  const auto* at = reinterpret_cast<const unsigned char*>(calls);
  for (size_t i = 0; i < n_calls; ++i) {
    mikv_attend_args one;
    mikv_attend_args_init(&one);
    const auto* given = reinterpret_cast<const mikv_attend_args*>(at);
    if (!read_struct(given, one)) return mikv::Error{"calls must be set by mikv_attend_args_init"};
    if (one.mask_type != MIKV_MASK_OWN && one.mask_type != MIKV_MASK_F16 && one.mask_type != MIKV_MASK_F32) {
      return mikv::Error{"mask_type " + std::to_string(int(one.mask_type)) + " is none of mikv_mask_type"};
    }
    to.push_back(arguments(one));
    at += given->size;
  }
  return {};
}

// Attends with calls as C++ has them. Calls that cannot be read fail the step: its outputs are not whole.
template <typename Attend>
Status with_calls(mikv::Context& context, const mikv_attend_args* calls, size_t n_calls, Attend attend) {
  thread_local std::vector<mikv::AttendArgs> args;
  const Status status = read_calls(calls, n_calls, args);
  if (!status) context.fail(status.error());
  return status ? attend(args) : status;
}

}  // namespace

extern "C" {

const char* mikv_version(void) { return MIKV_VERSION_STRING; }
const char* mikv_error_name(mikv_error error) { return mikv::error_name(ErrorCode(error)); }
const char* mikv_last_error_message(void) { return last_message; }

mikv_error mikv_check_spec(const char* spec) {
  return run([&]() -> Status {
    if (!spec) return null_argument("spec");
    const auto parsed = mikv::Spec::parse(spec);
    return parsed ? Status() : Status(parsed.error());
  });
}

void mikv_context_options_init(mikv_context_options* options) {
  if (!options) return;
  *options = {};
  options->size = sizeof *options;
  options->spec = "mikv";
  options->n_sequences = 1;
  options->n_cells = 4096;
  options->n_ubatch = 512;
  options->n_threads = 1;
  options->model = "";
}

mikv_error mikv_context_create(const mikv_context_options* options, mikv_context** context) {
  return run([&]() -> Status {
    if (!context) return null_argument("context");
    *context = nullptr;
    mikv_context_options given;
    mikv_context_options_init(&given);
    if (!read_struct(options, given)) return mikv::Error{"options must be set by mikv_context_options_init"};
    if (!given.spec) return null_argument("options->spec");
    auto spec = mikv::Spec::parse(given.spec);
    if (!spec) return spec.error();
    mikv::ContextOptions of;
    of.spec = std::move(spec).value();
    of.n_sequences = given.n_sequences;
    of.n_cells = given.n_cells;
    of.n_ubatch = given.n_ubatch;
    of.n_threads = given.n_threads;
    of.unified = given.unified != 0;
    of.model = given.model ? given.model : "";
    of.fingerprint = given.fingerprint;
    if (given.log) {
      of.log = [log = given.log, data = given.log_data](const std::string& line) { log(line.c_str(), data); };
    }
    if (given.threads) {
      if (!given.threads->parallel || !given.threads->thread || !given.threads->n_threads)
        return null_argument("a function of options->threads");
      of.run_threads = runner(*given.threads);
    }
    auto created = mikv::Context::create(std::move(of));
    if (!created) return created.error();
    *context = new mikv_context{std::move(created).value(), {}};
    return {};
  });
}

void mikv_context_free(mikv_context* context) { delete context; }

mikv_error mikv_context_add_layer(mikv_context* context, int32_t layer, const mikv_layer_shape* shape,
                                  uint32_t window) {
  return run([&]() -> Status {
    if (!context || !shape) return null_argument("context and shape");
    return context->context->add_layer(layer, {shape->n_heads, shape->n_kv_heads, shape->head_dim_k, shape->head_dim_v},
                                       0, window);
  });
}

mikv_error mikv_context_set_rope(mikv_context* context, int32_t layer, const float* angles, uint32_t n_angles,
                                 int32_t adjacent) {
  return run([&]() -> Status {
    if (!context || (!angles && n_angles)) return null_argument("context and angles");
    return context->context->set_rope(layer, {std::vector<float>(angles, angles + n_angles), adjacent != 0});
  });
}

mikv_error mikv_context_begin_step(mikv_context* context, const mikv_token* tokens, size_t n_tokens,
                                   const mikv_shared_token* shared, size_t n_shared) {
  return run([&]() -> Status {
    if (!context || (!tokens && n_tokens) || (!shared && n_shared)) return null_argument("context, tokens and shared");
    mikv::Batch batch;
    for (size_t i = 0; i < n_tokens; ++i) {
      batch.tokens.push_back(
          {tokens[i].sequence, tokens[i].output != 0, tokens[i].position, tokens[i].punctuation != 0});
    }
    for (size_t i = 0; i < n_shared; ++i) batch.shared.push_back({shared[i].token, shared[i].sequence});
    return context->context->begin_step(batch);
  });
}

mikv_error mikv_context_store(mikv_context* context, int32_t layer, size_t n_tokens, const float* k, size_t k_stride,
                              const float* v, size_t v_stride) {
  return run([&]() -> Status {
    if (!context || (!k && !v)) return null_argument("context, and k or v,");
    if (n_tokens > mikv::kMaxCells) return mikv::Error{"more tokens are stored than the batch has"};
    return context->context->store(layer, {}, k, k_stride, v, v_stride, uint32_t(n_tokens));
  });
}

void mikv_attend_args_init(mikv_attend_args* args) {
  if (!args) return;
  *args = {};
  args->size = sizeof *args;
  args->scale = 1.0f;
}

mikv_error mikv_context_attend(mikv_context* context, int32_t layer, const mikv_attend_args* calls, size_t n_calls,
                               uint32_t thread, uint32_t n_threads) {
  return run([&]() -> Status {
    if (!context || (!calls && n_calls)) return null_argument("context and calls");
    return with_calls(*context->context, calls, n_calls, [&](const std::vector<mikv::AttendArgs>& args) {
      return context->context->attend(layer, args, thread, n_threads);
    });
  });
}

mikv_error mikv_context_attend_all(mikv_context* context, int32_t layer, const mikv_attend_args* calls,
                                   size_t n_calls) {
  return run([&]() -> Status {
    if (!context || (!calls && n_calls)) return null_argument("context and calls");
    return with_calls(*context->context, calls, n_calls, [&](const std::vector<mikv::AttendArgs>& args) {
      return context->context->attend_all(layer, args);
    });
  });
}

void mikv_tensor_call_init(mikv_tensor_call* call) {
  if (!call) return;
  *call = {};
  call->size = sizeof *call;
  call->scale = 1.0f;
}

mikv_error mikv_context_attend_tensors(mikv_context* context, int32_t layer, const mikv_tensor_call* call) {
  return run([&]() -> Status {
    mikv_tensor_call known;
    mikv_tensor_call_init(&known);
    if (!context || !read_struct(call, known)) return null_argument("context and call");
    if (!known.sequences && known.n_sequences) return null_argument("sequences");
    const auto tensor = [](const mikv_tensor& of) {
      return mikv::Tensor{of.data, mikv::TensorType(of.type), of.sequence_stride, of.token_stride, of.head_stride};
    };
    return mikv::attend_tensors(*context->context, layer,
                                {.sequences = {known.sequences, known.n_sequences},
                                 .n_tokens = known.n_tokens,
                                 .q = tensor(known.q),
                                 .k = tensor(known.k),
                                 .v = tensor(known.v),
                                 .out = tensor(known.out),
                                 .scale = known.scale,
                                 .softcap = known.softcap,
                                 .sinks = known.sinks});
  });
}

mikv_error mikv_context_end_step(mikv_context* context, int32_t done) {
  return run([&]() -> Status { return context ? context->context->end_step(done != 0) : null_argument("context"); });
}

void mikv_context_fail(mikv_context* context, const char* message) {
  (void)run([&]() -> Status {
    if (!context) return null_argument("context");
    context->context->fail(mikv::Error{ErrorCode::engine, message ? message : "the engine stopped the step"});
    return {};
  });
}

mikv_error mikv_context_remove(mikv_context* context, int32_t sequence, int32_t p0, int32_t p1) {
  return run([&] { return context ? context->context->remove(sequence, p0, p1) : null_argument("context"); });
}

mikv_error mikv_context_copy(mikv_context* context, int32_t from, int32_t to, int32_t p0, int32_t p1) {
  return run([&] { return context ? context->context->copy(from, to, p0, p1) : null_argument("context"); });
}

mikv_error mikv_context_keep(mikv_context* context, int32_t sequence) {
  return run([&] { return context ? context->context->keep(sequence) : null_argument("context"); });
}

mikv_error mikv_context_shift(mikv_context* context, int32_t sequence, int32_t p0, int32_t p1, int32_t delta) {
  return run([&] { return context ? context->context->shift(sequence, p0, p1, delta) : null_argument("context"); });
}

void mikv_context_clear(mikv_context* context) {
  if (context) context->context->clear();
}

int32_t mikv_context_last_position(const mikv_context* context, int32_t sequence) {
  return context ? context->context->last_position(sequence) : -1;
}

mikv_error mikv_context_compress(mikv_context* context) {
  return run([&] { return context ? context->context->compress() : null_argument("context"); });
}

mikv_error mikv_context_save(mikv_context* context, int32_t sequence, const int32_t* tokens, size_t n_tokens,
                             uint8_t** bytes, size_t* n_bytes) {
  return run([&]() -> Status {
    if (!context || !bytes || !n_bytes || (!tokens && n_tokens)) return null_argument("an argument");
    const auto saved = context->context->save(sequence, {tokens, n_tokens});
    if (!saved) return saved.error();
    auto* memory = static_cast<uint8_t*>(std::malloc(saved.value().size()));
    if (!memory) throw std::bad_alloc();
    std::copy(saved.value().begin(), saved.value().end(), memory);
    *bytes = memory;
    *n_bytes = saved.value().size();
    return {};
  });
}

mikv_error mikv_context_load(mikv_context* context, int32_t sequence, const uint8_t* bytes, size_t n_bytes) {
  return run([&]() -> Status {
    if (!context || (!bytes && n_bytes)) return null_argument("context and bytes");
    return context->context->load(sequence, {bytes, n_bytes});
  });
}

mikv_error mikv_saved_tokens(const uint8_t* bytes, size_t n_bytes, int32_t* tokens, size_t capacity, size_t* n_tokens) {
  return run([&]() -> Status {
    if ((!bytes && n_bytes) || !n_tokens) return null_argument("bytes and n_tokens");
    const auto saved = mikv::Context::saved_tokens({bytes, n_bytes});
    if (!saved) return saved.error();
    *n_tokens = saved.value().size();
    if (tokens) std::copy_n(saved.value().begin(), std::min(capacity, saved.value().size()), tokens);
    return {};
  });
}

mikv_error mikv_context_save_file(mikv_context* context, int32_t sequence, const int32_t* tokens, size_t n_tokens,
                                  const char* path) {
  return run([&]() -> Status {
    if (!context || !path || (!tokens && n_tokens)) return null_argument("an argument");
    const auto saved = context->context->save(sequence, {tokens, n_tokens});
    return saved ? mikv::write_file(path, saved.value()) : Status(saved.error());
  });
}

mikv_error mikv_context_load_file(mikv_context* context, int32_t sequence, const char* path) {
  return run([&]() -> Status {
    if (!context || !path) return null_argument("context and path");
    const auto bytes = mikv::read_file(path);
    return bytes ? context->context->load(sequence, bytes.value()) : Status(bytes.error());
  });
}

void mikv_free(void* memory) { std::free(memory); }

void mikv_memory_usage_init(mikv_memory_usage* usage) {
  if (!usage) return;
  *usage = {};
  usage->size = sizeof *usage;
}

mikv_error mikv_context_memory_usage(const mikv_context* context, mikv_memory_usage* usage) {
  return run([&]() -> Status {
    mikv_memory_usage known;
    if (!context || !read_struct(usage, known)) return null_argument("context and usage");
    const mikv::MemoryUsage of = context->context->memory_usage();
    known = {usage->size,
             of.total(),
             of.staged,
             of.hi,
             of.lo,
             of.scales,
             of.ids,
             of.scores,
             of.calibration,
             of.slack,
             of.n_elements,
             context->context->account().peak(),
             of.bits_per_element()};
    std::memcpy(usage, &known, std::min(usage->size, sizeof known));
    return {};
  });
}

void mikv_context_set_budget(mikv_context* context, uint64_t bytes) {
  if (context) context->context->set_budget(bytes);
}

const char* mikv_context_spec(mikv_context* context) {
  if (!context) return "";
  (void)run([&]() -> Status {
    context->spec = context->context->spec().to_string();
    return {};
  });
  return context->spec.c_str();
}

mikv_error mikv_context_lowered(const mikv_context* context, int32_t* sequences, size_t capacity, size_t* n_sequences) {
  return run([&]() -> Status {
    if (!context || !n_sequences) return null_argument("context and n_sequences");
    const auto lowered = context->context->lowered_sequences();
    *n_sequences = lowered.size();
    if (sequences) std::copy_n(lowered.begin(), std::min(capacity, lowered.size()), sequences);
    return {};
  });
}

mikv_error mikv_context_tokens(const mikv_context* context, int32_t layer, uint32_t kv_head, int32_t sequence,
                               mikv_token_state* tokens, size_t capacity, size_t* n_tokens) {
  return run([&]() -> Status {
    if (!context || !n_tokens) return null_argument("context and n_tokens");
    const auto stored = mikv::tokens_of(*context->context, layer, kv_head, sequence);
    if (!stored) return stored.error();
    *n_tokens = stored.value().size();
    for (size_t i = 0; tokens && i < std::min(capacity, stored.value().size()); ++i) {
      const mikv::TokenState& token = stored.value()[i];
      tokens[i] = {token.position, mikv_tier(token.tier), token.score};
    }
    return {};
  });
}

}  // extern "C"
