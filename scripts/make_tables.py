#!/usr/bin/env python3
"""Writes the tables of the documents from the figures in docs/results/*.csv.

    scripts/make_tables.py           rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
    scripts/make_tables.py --check   changes nothing; exits 1 and names the pages whose tables are not as the figures say

A new table is a function here with the name that the page asks for. One figure per cell, the unit in the header."""

import argparse
import csv
import math
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = ["README.md", "docs/quality.md", "docs/performance.md", "docs/reliability.md", "docs/python.md", "docs/python-compare.md", "docs/results.md"]
MARKED = re.compile(r"(<!-- table: ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.S)

MODELS = {"qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B", "qwen2.5-coder-0.5b": "Qwen2.5-Coder-0.5B", "smollm2-135m": "SmolLM2-135M"}
TEXTS = ["prose", "code", "dialogue"]
PRESETS = ["mikv", "mikv-hq", "mikv-max"]
TABLES = {}


def table(function):
    TABLES[function.__name__.replace("_", "-")] = function
    return function


def read(name: str) -> list[dict]:
    with open(RESULTS / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def value(rows: list[dict], what: str, **wanted) -> str:
    """The one figure of that name."""
    found = [row["value"] for row in rows if row["what"] == what and all(row[key] == str(text) for key, text in wanted.items())]
    if len(found) != 1:
        sys.exit(f"make_tables: {len(found)} figures for {what} {wanted}, one is needed")
    return found[0]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header)] + rows
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def nats(number: float) -> str:
    return f"{number:.4f}" if number < 0.1 else f"{number:.3f}" if number < 1 else f"{number:.2f}"


# ---------------------------------------------------------------- README

@table
def headline() -> str:
    rows = read("headline")
    names = {"llama:f16": "llama.cpp f16", "full": "`full` (f16 in mikv)", "mikv": "**`mikv`** (default)", "mikv-hq": "`mikv-hq`", "mikv-max": "`mikv-max`",
             "llama:q8_0": "llama.cpp q8_0", "llama:q4_0": "llama.cpp q4_0", "mikv-paper": "`mikv-paper` (MiKV as published)",
             "rtn4": "`rtn4` (uniform INT4)", "h2o": "`h2o` (20 % kept, the rest evicted)"}
    cell = {row["what"]: row["value"] for row in rows}
    return markdown(["cache", "size, bits per element", "lines found, %", "mean KL divergence, nats"],
                    [[name, cell[f"bits {kv}"], cell.get(f"lines {kv}", "-"), cell.get(f"kld {kv}", "-")] for kv, name in names.items()])


# ---------------------------------------------------------------- quality

def quality() -> dict:
    return {(row["model"], row["context"], row["text"], row["kv"]): row for row in read("quality")}


def presets_by(figure: str, show) -> str:
    table = quality()
    rows = []
    for model, name in MODELS.items():
        for kv in PRESETS + (["llama:q8_0", "llama:q4_0"] if model == "smollm2-135m" else []):
            cells = [table[model, "1024", text, kv] for text in TEXTS]
            figures = [float(cell[figure]) for cell in cells]
            bits = statistics.mean(float(cell["bits_per_element"]) for cell in cells)
            rows.append([name, f"`{kv}`", f"{bits:.2f}", *(show(x) for x in figures), show(statistics.mean(figures))])
    return markdown(["model", "cache", "bits per element", *TEXTS, "mean of the three"], rows)


@table
def presets_kld() -> str:
    return presets_by("mean", nats)


@table
def presets_p99() -> str:
    return presets_by("p99", lambda x: f"{x:.3f}")


@table
def presets_same_top() -> str:
    return presets_by("same_top", lambda x: f"{100 * x:.1f}")


@table
def positions() -> str:
    rows = []
    for row in read("positions"):
        means = [float(x) for x in row["by_position"].split()]
        quarters = [statistics.mean(means[i:i + len(means) // 4]) for i in range(0, len(means), len(means) // 4)]
        rows.append([MODELS[row["model"]], f"`{row['kv']}`", row["tokens"], *map(nats, quarters), f"{quarters[3] / quarters[1]:.2f}"])
    return markdown(["model", "cache", "generated tokens", "1st quarter", "2nd", "3rd", "4th", "4th / 2nd"], rows)


LADDER = ["mikv:keep=0.05,bits=1.65", "mikv-max", "mikv", "mikv-hq", "mikv:keep=0.2,bits=3.9"]


def mikv_of_size(cell: dict, bits: float) -> float:
    """Divergence of a mikv cache of so many bits: between the points of the ladder on a logarithmic scale, beyond its ends the last."""
    points = sorted(cell[kv] for kv in LADDER)
    bits = min(max(bits, points[0][0]), points[-1][0])
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0 <= bits <= x1:
            share = (bits - x0) / (x1 - x0)
            return math.exp((1 - share) * math.log(y0) + share * math.log(y1))
    raise AssertionError


@table
def against_mikv() -> str:
    cells = {}
    for (model, context, text, kv), row in quality().items():
        cells.setdefault((model, context, text), {})[kv] = (float(row["bits_per_element"]), float(row["mean"]))
    kinds = {"uniform formats (`rtn2` to `rtn4`)": lambda kv: kv in ("rtn2", "rtn3", "rtn4"),
             "uniform formats, centred and rotated": lambda kv: kv.startswith("rtn") and "outlier" in kv,
             "evicting (`h2o`)": lambda kv: kv == "h2o",
             "llama.cpp's q4_0": lambda kv: kv == "llama:q4_0:prefill=exact",
             "`mikv-paper:lo=int2`": lambda kv: kv == "mikv-paper:lo=int2",
             "`mikv-paper`": lambda kv: kv == "mikv-paper",
             "`rtn8`": lambda kv: kv == "rtn8",
             "llama.cpp's q8_0": lambda kv: kv == "llama:q8_0:prefill=exact"}
    rows = []
    for name, chosen in kinds.items():
        points = [(bits, mean / mikv_of_size(cell, bits)) for cell in cells.values() for kv, (bits, mean) in cell.items() if chosen(kv)]
        bits, ratios = [b for b, _ in points], [r for _, r in points]
        rows.append([name, f"{min(bits):.1f}", f"{max(bits):.1f}", *(f"{x:,.0f}" if x >= 10 else f"{x:.2f}" for x in (min(ratios), statistics.median(ratios), max(ratios)))])
    return markdown(["cache", "least bits per element", "most", "least ratio", "median ratio", "most"], rows)


@table
def ladder() -> str:
    table = {(row["model"], row["kv"]): row for row in read("ladder")}
    names = {"mikv:keep=0.06,bits=1.89": " (`mikv-max`)", "mikv:keep=0.08,bits=2.7": " (`mikv`)", "mikv:keep=0.12,bits=3.61": " (`mikv-hq`)"}
    rows = []
    for kv in dict.fromkeys(row["kv"] for row in read("ladder")):
        cells = [table[model, kv] for model in MODELS]
        rows.append([f"`{kv}`" + names.get(kv, ""), *(x for cell in cells for x in (cell["bits_per_element"], cell["mean"]))])
    return markdown(["spec", *(x for name in ("1.5B", "0.5B", "SmolLM2") for x in (f"{name}, bits per element", f"{name}, mean KL divergence"))], rows)


@table
def streaming() -> str:
    table = quality()
    rows = []
    for model, name in MODELS.items():
        for kv in ("mikv", "mikv-max"):
            exact, streamed = ([float(table[model, "8000", text, spec]["mean"]) for text in TEXTS] for spec in (kv, f"{kv}:prefill=streaming"))
            rows.append([name, f"`{kv}`", *(nats(x) for pair in zip(exact, streamed) for x in pair), f"{sum(streamed) / sum(exact):.2f}"])
    return markdown(["model", "cache", *(x for text in TEXTS for x in (f"{text}, exact", f"{text}, streaming")), "ratio of the means"], rows)


# ---------------------------------------------------------------- performance

ZEN3, ZEN4, ZEN5 = "Zen 3 server, 2 cores, AVX2", "Zen 4 server, 2 cores, AVX-512 with VNNI", "Zen 5 server, 2 cores"
SHAPES = [(128, 6, 4096), (128, 6, 16384), (128, 6, 65536), (64, 3, 4096), (64, 7, 4096), (256, 4, 4096), (128, 1, 4096), (128, 8, 4096)]


@table
def attention_times() -> str:
    rows = read("performance")
    lines = []
    for channels, heads, tokens in SHAPES:
        name = f"attention {channels}x{heads}"
        shown = ["mikv median", "mikv least", "full median", "llama:f16 median", "llama:q4_0 median"]
        times = [value(rows, f"{name} {what}", tokens=tokens, machine=ZEN4) for what in shown]
        lines.append([str(channels), str(heads), f"{tokens:,}", *times])
    return markdown(["channels", "query heads per KV head", "tokens", "`mikv`", "`mikv`, least", "`full`", "llama.cpp f16", "llama.cpp q4_0"], lines)


@table
def attention_ratios() -> str:
    rows = read("performance")
    lines = []
    some = [(128, 6, 4096), (128, 6, 16384), (64, 3, 4096), (64, 7, 4096)]
    for machine, name, shapes in ((ZEN4, "Zen 4", SHAPES), (ZEN5, "Zen 5", some), (ZEN3, "Zen 3, AVX2", [*some, (128, 1, 4096), (128, 8, 4096)])):
        for channels, heads, tokens in shapes:
            figures = [value(rows, f"attention {channels}x{heads} mikv {what}", tokens=tokens, machine=machine)
                       for what in ("against llama:f16", "against llama:q4_0", "of fp32 roofline")]
            lines.append([name, str(channels), str(heads), f"{tokens:,}", f"**{figures[0]}**", figures[1], figures[2]])
    return markdown(["machine", "channels", "query heads per KV head", "tokens", "times as fast as f16", "times as fast as q4_0", "% of the fp32 roofline"], lines)


@table
def scaling() -> str:
    rows = read("performance")
    lines = []
    for work in ("generation", "chunk of 256"):
        for kv in ("mikv", "full"):
            lines.append([work, f"`{kv}`", *(value(rows, f"1 to 2 threads, {work}, {kv}", unit=f"times as fast, {kind}") for kind in ("median", "least times"))])
    return markdown(["work", "cache", "2 threads against 1, median", "by least times"], lines)


@table
def threads() -> str:
    rows = read("performance")
    lines = []
    for heads in (2, 8):
        for work, tokens in (("generation", 4096), ("generation", 16384), ("chunk of 256", 8192)):
            counts = (2, 4, 8, 16) if work == "generation" else (16,)
            of = {n: value(rows, f"longest share of {n} threads, {work}, {heads} KV heads", tokens=tokens) for n in counts}
            lines.append([work, str(heads), f"{tokens:,}", *(of.get(n, "-") for n in (2, 4, 8, 16))])
    return markdown(["work, `mikv`", "KV heads", "tokens", "2 threads, times as fast", "4", "8", "16"], lines)


@table
def formats() -> str:
    rows = read("performance")
    specs = ["mikv", "mikv-hq", "mikv-max", "mikv:lo=int2", "mikv:lo=int3", "mikv:lo=int4"]
    return markdown(["spec", "median, ns per token and KV head", "least"],
                    [[f"`{kv}`", *(value(rows, f"format {kv} {kind}") for kind in ("median", "least"))] for kv in specs])


@table
def decode() -> str:
    rows = read("performance")
    lines = []
    for depth in (0, 8192, 16384):
        cells = [value(rows, f"decode {kv} {kind}", tokens=depth, machine=ZEN4) for kv in ("mikv", "llama:f16") for kind in ("median", "least", "most")]
        lines.append([f"{depth:,}", *cells, value(rows, "decode mikv against llama:f16", tokens=depth, machine=ZEN4),
                      "100" if depth == 0 else value(rows, "decode mikv against depth 0", tokens=depth, machine=ZEN4)])
    return markdown(["tokens in the cache", "`mikv`, tokens/s", "least", "most", "llama.cpp f16, tokens/s", "least", "most", "times as fast", "`mikv`, % of depth 0"], lines)


@table
def decode_machines() -> str:
    rows = read("performance")
    lines = []
    for machine, name in ((ZEN4, "Zen 4"), (ZEN5, "Zen 5")):
        for depth in (8192, 16384):
            lines.append([name, f"{depth:,}", value(rows, "decode mikv against llama:f16", tokens=depth, machine=machine)])
    return markdown(["machine", "tokens in the cache", "times as fast as f16"], lines)


@table
def decode_small() -> str:
    rows = read("performance")
    of = {"model": "qwen2.5-coder-0.5b", "machine": ZEN3, "tokens": 4096}
    figures = [value(rows, f"decode {what}", **of) for what in ("mikv median", "llama:f16 median", "mikv against llama:f16", "mikv compression")]
    return markdown(["model", "machine", "tokens in the cache", "`mikv`, tokens/s", "llama.cpp f16, tokens/s", "times as fast", "compression of the prompt, s"],
                    [[MODELS["qwen2.5-coder-0.5b"], "Zen 3", "4,096", *figures]])


@table
def pause() -> str:
    rows = read("performance")
    lines = []
    for model, machine in (("qwen2.5-coder-0.5b", ZEN3), ("qwen2.5-coder-1.5b", ZEN4)):
        of = {"model": model, "machine": machine, "tokens": 4096}
        for kv, name in (("mikv:prefill=spread", "`mikv:prefill=spread`"), ("stock", "stock llama.cpp")):
            for others in (0, 3):
                longest, median = (value(rows, f"pause {kv} {others} others {kind}", **of) for kind in ("longest", "median"))
                lines.append([MODELS[model], machine.split(" server")[0], name, str(others), longest, median, f"{float(longest) / float(median):.2f}"])
    return markdown(["model", "machine", "cache", "other slots that generate", "longest step, ms", "median step, ms", "longest against median"], lines)


@table
def prefill() -> str:
    rows = read("performance")
    lines = []
    for model, machine, depth, kv in (("qwen2.5-coder-1.5b", ZEN4, 4096, "llama:f16"), ("qwen2.5-coder-1.5b", ZEN4, 4096, "llama:q4_0"),
                                      ("qwen2.5-coder-1.5b", ZEN4, 8192, "llama:f16"), ("qwen2.5-coder-0.5b", ZEN3, 4096, "llama:f16")):
        of = {"model": model, "machine": machine, "tokens": depth}
        lines.append([MODELS[model], machine.split(" server")[0], f"{depth:,}", value(rows, "prefill mikv median", **of), "llama.cpp " + kv[6:],
                      value(rows, f"prefill {kv} median", **of), value(rows, f"prefill mikv against {kv}", **of)])
    return markdown(["model", "machine", "tokens in the cache", "`mikv`, tokens/s", "against", "tokens/s", "times as fast"], lines)


@table
def wait() -> str:
    rows = read("performance")
    lines = []
    for row in rows:
        if not (row["what"].startswith("wait ") and row["what"].endswith(" median")):
            continue
        kv = row["what"].split()[1]
        of = {"model": row["model"], "machine": row["machine"], "tokens": int(row["tokens"])}
        lines.append([MODELS[row["model"]], f"{of['tokens']:,}", "llama.cpp " + kv[6:] if kv.startswith("llama:") else f"`{kv}`",
                      *(value(rows, f"wait {kv} {kind}", **of) for kind in ("median", "least", "most", "reading", "compression", "ratio"))])
    return markdown(["model", "tokens of the prompt", "cache", "wait, s", "least", "most", "reading, s", "compression, s", "times as fast as llama.cpp f16"], lines)


@table
def preset_decode() -> str:
    rows = read("performance")
    specs = ["mikv", "mikv:lo=int3", "mikv-hq", "mikv-hq:lo=int4", "mikv-max", "mikv-max:lo=int2"]
    return markdown(["spec", "tokens/s, median", "least", "most"],
                    [[f"`{kv}`", *(value(rows, f"preset decode {kv} {kind}") for kind in ("median", "least", "most"))] for kv in specs])


@table
def profile() -> str:
    rows = [row for row in read("performance") if row["what"].startswith("share of attention: ")]
    return markdown(["part", "% of attention"], [[row["what"].split(": ")[1], row["value"]] for row in rows])


# ---------------------------------------------------------------- reliability

@table
def contexts() -> str:
    found = {(row["machine"], row["what"]): row["value"] for row in read("reliability")}
    machine = "Zen 4 server, 2 cores, AVX-512 with VNNI"
    counts = []
    for seed in range(1, 7):
        arms = [found.get((machine, f"contexts seed {seed} {arm}")) for arm in ("mikv", "stock")]
        if all(arms):
            counts.append([str(seed), 192, *map(int, arms)])
    counts.append(["all", *(sum(column) for column in list(zip(*counts))[1:])])
    lines = [[seed, str(ours), str(stock), f"{100 * (stock - ours) / asked:.1f}"] for seed, asked, ours, stock in counts]
    return markdown(["seed", "`mikv`, right answers", "stock llama.cpp, right answers", "percentage points fewer"], lines)


@table
def soak() -> str:
    rows = read("reliability")
    lines = []
    for seed in ("", " seed 2"):
        figures = [value(rows, f"soak{seed} {what}") for what in ("requests", "cancelled", "saves and loads", "errors")]
        figures += [value(rows, f"soak{seed} anonymous memory, quarter {quarter}") for quarter in range(1, 5)]
        lines.append([seed.split()[-1] if seed else "1", *figures])
    return markdown(["seed", "requests", "cancelled", "saves and loads", "errors", "memory in quarter 1, MiB", "quarter 2", "quarter 3", "quarter 4"], lines)


# ---------------------------------------------------------------- python-compare

def compared(kinds: tuple[str, ...]) -> str:
    rows = [row for row in read("python_compare") if row["kind"] in kinds]
    cells = {(row["model"], row["context"], row["cache"], row["text"]): row for row in rows}
    lines = []
    for (model, context, cache, text), row in cells.items():
        if text != "all":
            continue
        by_text = [cells.get((model, context, cache, name)) for name in TEXTS]
        ratio = row["times_mikv_at_equal_bits"]
        lines.append([MODELS[model], f"{int(context):,}", f"`{cache}`", f"{float(row['bits_per_element']):.2f}",
                      *(nats(float(cell["mean"])) if cell else "-" for cell in by_text), nats(float(row["mean"])), row["n"],
                      f"{float(ratio):.1f}" if ratio else "-"])
    return markdown(["model", "context, tokens", "cache", "bits per element", "prose", "code", "dialogue", "mean of all", "tokens compared", "times `mikv`"], lines)


@table
def python() -> str:
    return markdown(["what", "model", "machine", "tokens", "figure", "unit"],
                    [[row["what"], MODELS[row["model"]], row["machine"].split(",")[0], f"{int(row['tokens']):,}" if row["tokens"] else "-", row["value"], row["unit"]]
                     for row in read("python")])


@table
def compared_mikv() -> str:
    return re.sub(r" [^|]*\|$", "", compared(("mikv",)), flags=re.M)


@table
def compared_rivals() -> str:
    return compared(("peer", "simulated"))


@table
def compared_times() -> str:
    rows = [row for row in read("python_compare") if row["cache_ms"]]
    return markdown(["model", "context, tokens", "cache", "in the cache, ms per token", "whole step, ms per token"],
                    [[MODELS[row["model"]], f"{int(row['context']):,}", f"`{row['cache']}`", f"{float(row['cache_ms']):.1f}",
                      f"{float(row['step_ms']):.0f}" if row["step_ms"] else "-"] for row in rows])


# ---------------------------------------------------------------- results

def of_suite(task: str, caches: list[str], names: dict[str, str] | None = None, likely: bool = False) -> str:
    """The rows of a task of docs/results/suite.csv, model by model. likely: with the log-likelihood of right choices."""
    rows = {(row["model"], row["task"], row["kv"]): row for row in read("suite")}
    lines = []
    for model, shown in MODELS.items():
        for kv in caches:
            row = rows.get((model, task, kv))
            if row is None:
                continue
            share = [f"{100 * float(row[name]):.0f}" for name in ("score", "low", "high")]
            lines.append([shown, (names or {}).get(kv, f"`{kv}`"), row["bits_per_element"] or "-", *share, row["n"],
                          *(row[name] or "-" for name in ("lost", "won")), "< 0.0001" if row["p"] == "0.0000" else row["p"] or "-"])
            if likely:
                lines[-1] += [row["log_likelihood"] or "-", f"{row['difference']} (error {row['standard_error']})" if row["difference"] else "-"]
    more = ["log-likelihood of the right choice", "difference to `full`"] if likely else []
    return markdown(["model", "cache", "bits per element", "right, %", "95 % interval from", "to", "items", "lost against `full`", "won", "p", *more], lines)


@table
def mmlu() -> str:
    return of_suite("mmlu", ["full", "mikv", "mikv-max", "h2o", "rtn4"], likely=True)


@table
def lines_retained() -> str:
    tiers = {"": "lost", ",lo=int2": "in INT2", ",lo=int3": "in INT3", ",lo=int4": "in INT4"}
    names = {f"h2o:keep={keep}{lo}": f"{100 * float(keep):.0f} % in f16, the others {held}" for keep in ("0.5", "0.25") for lo, held in tiers.items()}
    return of_suite("lines", ["full", *names], names)


@table
def lines_outliers() -> str:
    names = {"mikv-paper:outlier=none": "INT4, no balancer", "mikv-paper": "INT4, balancer", "mikv-paper-f16:outlier=none": "INT2, no balancer",
             "mikv-paper-f16": "INT2, balancer"}
    return of_suite("lines", ["full", *names], names)


@table
def lines_high() -> str:
    names = {f"mikv-paper-{held}": held.upper() if held != "f16" else "f16" for held in ("f16", "int8", "int4", "int2")}
    return of_suite("lines", ["full", *names], names)


@table
def lines_systems() -> str:
    return of_suite("lines", ["full", "h2o", "scissorhands", "fastgen", "streaming", "window", "snapkv", "rtn8", "rtn4", "rtn3", "rtn2", "flexgen",
                              "llm-qat8", "llm-qat4", "mikv-paper", "mikv-hq", "mikv", "mikv-max", "llama:f16", "llama:q8_0", "llama:q4_0"])


@table
def lines_long() -> str:
    return of_suite("lines: 100", ["full", "h2o", "rtn4", "mikv-hq", "mikv", "mikv-max"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if a page would change")
    check = parser.parse_args().check
    stale = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text()
        for _, name, _ in MARKED.findall(text):
            if name not in TABLES:
                sys.exit(f"make_tables: {page} asks for a table {name} that does not exist; there are {', '.join(TABLES)}")
        made = MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)
        if made == text:
            continue
        stale.append(page)
        if not check:
            path.write_text(made)
    if check and stale:
        print(f"make_tables: not as docs/results says: {', '.join(stale)}; run scripts/make_tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
