// mikv: a KV cache in three tiers, and attention fused over them (MiKV, arXiv 2402.18096). All of the C++ API.
// Words are explained in docs/glossary.md.
#pragma once

#include "mikv/atomic_file.hpp"
#include "mikv/byte_size.hpp"
#include "mikv/context.hpp"
#include "mikv/estimate.hpp"
#include "mikv/inspect.hpp"
#include "mikv/memory_account.hpp"
#include "mikv/reference.hpp"
#include "mikv/report.hpp"
#include "mikv/result.hpp"
#include "mikv/rising_cells.hpp"
#include "mikv/simd.hpp"
#include "mikv/spec.hpp"
#include "mikv/static_balancer.hpp"
#include "mikv/tensors.hpp"
#include "mikv/thread_team.hpp"
#include "mikv/types.hpp"
