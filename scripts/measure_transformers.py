#!/usr/bin/env python3
"""What mikv.hf promises inside Transformers, measured on real models (docs/python.md).

    scripts/measure_transformers.py same   --gguf FILE   10 prompts, 64 tokens each, in all modes of generate(): `full` against DynamicCache
    scripts/measure_transformers.py speed  --gguf FILE   one step at 4,096 tokens: `full` and `mikv` against DynamicCache with sdpa, and quanto
    scripts/measure_transformers.py memory --gguf FILE   bytes of the cache at 4,096 tokens, and their peak, against DynamicCache

Prints JSON, and progress on stderr. Needs the package mikv with [hf,gguf]; quanto-int4 needs optimum-quanto. Caches take turns
at every step of `speed`: compare them within one run only."""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import DynamicCache

import mikv
import mikv.hf
from mikv._cli import load_model, load_tokenizer

CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"


class HalvesCache(DynamicCache):
    """DynamicCache with keys and values rounded to halves, as `full` holds them."""

    def update(self, key_states, value_states, *args, **kwargs):
        dtype = key_states.dtype
        return super().update(key_states.half().to(dtype), value_states.half().to(dtype), *args, **kwargs)


def note(text):
    print(text, file=sys.stderr, flush=True)


def load(args):
    transformers.utils.logging.set_verbosity_error()
    if not args.gguf.is_file():
        sys.exit(f"{args.gguf} is no file; `mikv model path NAME` names one")
    return load_model(str(args.gguf), None, args.dtype, "sdpa"), load_tokenizer(str(args.gguf), None)


def make_cache(model, kind):
    """The cache, with the model set to the attention that goes with it."""
    ours = kind.startswith("mikv") or kind in ("full", "h2o")
    model.set_attn_implementation("mikv" if ours else "sdpa")
    if ours:
        return mikv.hf.Cache(kind, config=model.config)
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    if kind == "halves":
        return HalvesCache(config=model.config)
    if kind.startswith("quanto-int"):
        return transformers.QuantizedCache("quanto", model.config, nbits=int(kind[-1]))
    sys.exit(f"no cache {kind}")


# ---------------------------------------------------------------- same

PROMPTS = [
    "The ship left the harbour before dawn, and nobody on the quay",
    "def fibonacci(n):\n    \"\"\"The n-th number of Fibonacci.\"\"\"\n",
    "To bake a loaf of rye bread you need flour, water, salt and",
    "In 1969 two people walked on the moon. The first of them",
    "Q: What is the difference between a list and a tuple?\nA:",
    "The three laws of thermodynamics say that",
    "Dear Ms Okafor,\n\nThank you for your letter of the third of May. We",
    "SELECT name, count(*) FROM orders JOIN customers ON",
    "Once upon a time there was a miller who had three sons. When he died,",
    "The committee met on Tuesday. Present were: the chair, the treasurer and",
]
CONTINUED = "\n\nNow say the same in other words:"


def modes(model, n_new):
    assistant = copy.deepcopy(model)
    assistant.set_attn_implementation("sdpa")
    greedy = {"max_new_tokens": n_new, "do_sample": False}
    return {
        "greedy": greedy,
        "4 beams": greedy | {"num_beams": 4},
        "sampling with 2 returns": greedy | {"do_sample": True, "num_return_sequences": 2},
        "assisted": greedy | {"assistant_model": assistant},
        "prompt lookup": greedy | {"prompt_lookup_num_tokens": 6},
        "chunked prefill": greedy | {"prefill_chunk_size": 8},
    }


def measure_same(args):
    model, tokenizer = load(args)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"

    def generate(kind, inputs, cache=None, **arguments):
        cache = make_cache(model, kind) if cache is None else cache
        torch.manual_seed(3)
        with torch.no_grad():
            return model.generate(**inputs, **{CACHE: cache}, pad_token_id=tokenizer.pad_token_id, **arguments), cache

    def second_turn(kind, inputs):
        first, cache = generate(kind, inputs, max_new_tokens=args.new // 2, do_sample=False)
        more = tokenizer(CONTINUED, return_tensors="pt", add_special_tokens=False)["input_ids"]
        ids = torch.cat([first, more], 1)
        return generate(kind, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, cache, max_new_tokens=args.new // 2, do_sample=False)[0]

    prompts = PROMPTS[: args.prompts]
    rows = {}
    for mode, arguments in modes(model, args.new).items():
        rows[mode] = [lambda kind, p=p, a=arguments: generate(kind, tokenizer([p], return_tensors="pt"), **a)[0] for p in prompts]
    rows["second turn"] = [lambda kind, p=p: second_turn(kind, tokenizer([p], return_tensors="pt")) for p in prompts]
    rows["left-padded batch of 4"] = [
        lambda kind, i=i: generate(kind, tokenizer([PROMPTS[(i + j) % 10] * (1 + j) for j in range(4)], return_tensors="pt", padding=True), max_new_tokens=args.new, do_sample=False)[0]
        for i in range(0, len(prompts))
    ]
    chosen = args.modes.split(",") if args.modes else list(rows)
    if unknown := [mode for mode in chosen if mode not in rows]:
        sys.exit(f"no mode {unknown[0]!r}; modes: {', '.join(rows)}")
    out = {}
    for mode in chosen:
        runs = rows[mode]
        equal = {"dynamic": 0, "halves": 0}
        failed = None
        for run in runs:
            try:
                want = {kind: run(kind) for kind in equal}
            except Exception as error:  # whatever it is: stock fails here
                failed = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                break
            got = run("full")
            for kind in equal:
                equal[kind] += torch.equal(want[kind], got)
        out[mode] = {"stock fails": failed} if failed else {"of": len(runs), "as DynamicCache": equal["dynamic"], "as DynamicCache in halves": equal["halves"]}
        note(f"{mode}: {out[mode]}")
    return out


# ---------------------------------------------------------------- speed and memory


def read_prompt(model, cache, ids):
    with torch.no_grad():
        model(ids, **{CACHE: cache}, logits_to_keep=1)


def random_ids(model, n):
    return torch.randint(100, min(20000, model.config.vocab_size), (1, n), generator=torch.Generator().manual_seed(1))


class Stopwatch:
    """Adds up the seconds of the functions that it wraps."""

    def __init__(self):
        self.seconds = 0.0

    def wrap(self, function):
        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def measure_speed(args):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, _ = load(args)
    ids = random_ids(model, args.tokens)
    caches, watch = {}, Stopwatch()
    for kind in args.caches.split(","):
        note(f"{kind}: reading {args.tokens} tokens")
        caches[kind] = make_cache(model, kind)
        read_prompt(model, caches[kind], ids)
        with torch.no_grad():
            model(ids[:, :1], **{CACHE: caches[kind]})  # compresses
    for name in ("sdpa", "mikv"):
        ALL_ATTENTION_FUNCTIONS.register(name, watch.wrap(ALL_ATTENTION_FUNCTIONS[name]))
    for cache in caches.values():
        cache.update = watch.wrap(cache.update)
    seconds = {kind: {"attention": [], "step": []} for kind in caches}
    for i in range(args.steps):
        for kind, cache in caches.items():
            model.set_attn_implementation("sdpa" if kind == "dynamic" or kind.startswith("quanto") else "mikv")
            watch.seconds = 0.0
            start = time.perf_counter()
            with torch.no_grad():
                model(ids[:, i : i + 1], **{CACHE: cache})
            seconds[kind]["step"].append(time.perf_counter() - start)
            seconds[kind]["attention"].append(watch.seconds)
    median = {kind: {what: statistics.median(times[2:]) for what, times in of.items()} for kind, of in seconds.items()}
    out = {kind: {f"{what}_ms": round(1e3 * value, 2) for what, value in of.items()} for kind, of in median.items()}
    if "mikv" in median:
        for kind in median:
            out[kind]["attention, times mikv"] = round(median[kind]["attention"] / median["mikv"]["attention"], 2)
            out[kind]["step, times mikv"] = round(median[kind]["step"] / median["mikv"]["step"], 2)
    return out


def measure_memory(args):
    model, _ = load(args)
    ids = random_ids(model, args.tokens)
    dynamic = make_cache(model, "dynamic")
    read_prompt(model, dynamic, ids)
    stock = sum(x.numel() * x.element_size() for layer in dynamic.layers for x in (layer.keys, layer.values))
    out = {"dynamic": {"bytes": stock}}
    for spec in ("mikv", "mikv:prefill=streaming"):
        note(f"{spec}: reading {args.tokens} tokens")
        cache = make_cache(model, spec)
        read_prompt(model, cache, ids)
        with torch.no_grad():
            model(ids[:, :1], **{CACHE: cache})
        usage = cache.memory_usage()
        out[spec] = {"bytes": usage.total, "peak_bytes": usage.peak, "times smaller": round(stock / usage.total, 2), "peak, share": round(usage.peak / stock, 3), "bits_per_element": round(usage.bits_per_element, 2)}
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("same", "speed", "memory"))
    parser.add_argument("--gguf", required=True, type=Path, help="model file")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--tokens", type=int, default=4096, help="of the prompt of speed and memory (%(default)s)")
    parser.add_argument("--steps", type=int, default=24, help="timed steps; the first 2 do not count (%(default)s)")
    parser.add_argument("--caches", default="dynamic,full,mikv,quanto-int4", help="of speed (%(default)s)")
    parser.add_argument("--prompts", type=int, default=10, help="of same, up to 10 (%(default)s)")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate in same (%(default)s)")
    parser.add_argument("--modes", default="", help="of same, with commas (all)")
    args = parser.parse_args()
    measured = {"same": measure_same, "speed": measure_speed, "memory": measure_memory}[args.what](args)
    meta = {"model": args.gguf.stem, "dtype": args.dtype, "threads": torch.get_num_threads(), "transformers": transformers.__version__, "torch": torch.__version__, "mikv": mikv.library_version()}
    print(json.dumps(meta | {args.what: measured}, indent=1))


if __name__ == "__main__":
    main()
