#!/usr/bin/env python3
"""Draws divergence against bits from docs/results/quality.csv:

    docs/frontier.svg   a panel for each model and length, every cache and text
    docs/summary.svg    one panel: one model and length, the mean over the texts

    scripts/plot_frontier.py [prose=a.json code=b.json ...]

What `mikv eval kld -o FILE.json` wrote is taken into the table first, each file named by the kind of its text: a row takes the place of an
older one of the same model, length, text and cache. Needs matplotlib (PyPI: matplotlib==3.9.2). Text stays text and coordinates have one
decimal, so that the files are small and their changes can be read."""

import argparse
import csv
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "mikv", "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
                            "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs"
KEY = ["model", "context", "text", "kv"]
FIGURES = ["bits_per_element", "mean", "median", "p99", "same_top", "n"]
TEXTS = ["prose", "code", "dialogue"]
FAMILIES = {"mikv": "#1f5fbf", "mikv, streaming prefill": "#7fb2f0", "uniform formats (rtn)": "#d9822b", "uniform, centred and rotated": "#3c9a5f",
            "MiKV as published": "#8b5fbf", "llama.cpp, exact prefill": "#222222", "llama.cpp": "#999999", "evicting (h2o)": "#c0392b"}
POINTS = ("llama.cpp", "evicting")  # families of single points
SUMMARY_MODEL, SUMMARY_CONTEXT = "qwen2.5-coder-1.5b", 1024
# Label, and where it stands from its point.
SUMMARY_LABELS = {"mikv": ("mikv", (5, 5)), "mikv-hq": ("mikv-hq", (5, 5)), "mikv-max": ("mikv-max", (6, 4)),
                  "llama:q8_0:prefill=exact": ("llama.cpp q8_0", (-72, -12)), "llama:q4_0:prefill=exact": ("llama.cpp q4_0", (-28, 8)), "h2o": ("h2o", (7, -3)),
                  "mikv-paper": ("mikv-paper", (-24, -14)), "mikv-paper:lo=int2": ("mikv-paper:lo=int2", (6, 6)), "rtn2": ("rtn2", (-9, -14)),
                  "rtn3": ("rtn3", (-9, -14)), "rtn4": ("rtn4", (-24, -13)), "rtn8": ("rtn8", (-6, 8))}


def family(kv: str) -> str:
    if kv.startswith("llama:"):
        return "llama.cpp, exact prefill" if "exact" in kv else "llama.cpp"
    if kv.startswith("rtn"):
        return "uniform, centred and rotated" if "outlier" in kv else "uniform formats (rtn)"
    if kv.startswith("h2o"):
        return "evicting (h2o)"
    if kv.startswith("mikv-paper"):
        return "MiKV as published"
    return "mikv, streaming prefill" if "streaming" in kv else "mikv"


def read_table(path: Path) -> dict:
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {tuple(row[key] for key in KEY): row for row in csv.DictReader(file)}


def write_table(path: Path, table: dict) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, KEY + FIGURES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(table.values(), key=lambda row: (row["model"], int(row["context"]), row["text"], float(row["bits_per_element"]), row["kv"])))


def rows_of(report: dict, text: str):
    for row in report["rows"]:
        figures = {name: f"{row[name]:.6g}" for name in FIGURES}
        yield {"model": Path(report["meta"]["model"]).stem, "context": str(report["meta"]["context"]), "text": text, "kv": row["kv"], **figures}


def shorter(path: str) -> str:
    return re.sub(r"\s*([MLCzQ])\s*", r"\1", path).replace(".0 ", " ").strip()


def save(figure, path: Path) -> None:
    """One decimal is enough for coordinates in points. Nothing that is not seen is kept."""
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = path.read_text()
    svg = re.sub(r' (d|x|y|width|height|transform)="[^"]*"', lambda found: re.sub(r"(\d+\.\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r"\n\s*<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<!DOCTYPE.*?>\n|<metadata>.*?</metadata>\n?', "", svg, flags=re.S)
    svg = re.sub(r"\n\s+", "\n", svg)
    svg = re.sub(r' d="([^"]*)"', lambda found: f' d="{shorter(found[1])}"', svg)
    svg = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg, count=2)
    svg = re.sub(r' id="(?!m[0-9a-f]{10}")[^"]*"', "", svg)  # ids of markers are used
    svg = re.sub(r"<defs>\n<clipPath.*?</defs>\n", "", svg, flags=re.S)
    svg = svg.replace("<g/>\n", "")
    while (less := re.sub(r"<g>\n((?:(?!</?g>).)*?)</g>\n", r"\1", svg, flags=re.S)) != svg:  # groups that say nothing
        svg = less
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", svg)
    path.write_text(svg)


def logarithmic(axis) -> None:
    axis.xaxis.set_major_locator(MultipleLocator(2))
    axis.tick_params(length=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(base=10))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.grid(True, which="major", linewidth=0.4, color="#dddddd", clip_on=False)


def draw_frontier(table: dict, path: Path) -> None:
    panels = defaultdict(lambda: defaultdict(list))  # (model, context) -> (family, kind) -> points
    for row in table.values():
        if float(row["mean"]) > 0:
            panels[row["model"], int(row["context"])][family(row["kv"]), row["text"]].append((float(row["bits_per_element"]), float(row["mean"])))
    models = sorted({model for model, _ in panels}, reverse=True)
    contexts = sorted({context for _, context in panels})

    figure, axes = plt.subplots(len(models), len(contexts), figsize=(4.1 * len(contexts), 2.9 * len(models) + 0.7), sharex=True, sharey=True, squeeze=False)
    for i, model in enumerate(models):
        for j, context in enumerate(contexts):
            axis, lines = axes[i][j], panels.get((model, context), {})
            axis.set_title(f"{model}, {context:,} tokens", fontsize=9)
            # One line per family: its texts are repetitions, with gaps between them.
            for name in FAMILIES:
                x, y = [], []
                for _, points in sorted((text, points) for (of, text), points in lines.items() if of == name):
                    x += [point[0] for point in sorted(points)] + [float("nan")]
                    y += [point[1] for point in sorted(points)] + [float("nan")]
                single = name.startswith(POINTS)
                axis.plot(x, y, color=FAMILIES[name], marker="o" if single else "", markersize=3, linewidth=0 if single else 0.9, clip_on=False)
            logarithmic(axis)
            axis.set_xlim(1.8, 9.6)
            if j == 0:
                axis.set_ylabel("mean KL divergence, nats")
            if i + 1 == len(models):
                axis.set_xlabel("bits per element, everything counted")
    used = {name for lines in panels.values() for name, _ in lines}
    handles = [Line2D([], [], color=colour, label=name, **({"marker": "o", "linewidth": 0, "markersize": 3} if name.startswith(POINTS) else {}))
               for name, colour in FAMILIES.items() if name in used]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.96, bottom=0.12, wspace=0.08, hspace=0.16)
    save(figure, path)


def draw_summary(table: dict, path: Path) -> None:
    by_kv = defaultdict(list)
    for row in table.values():
        if row["model"] == SUMMARY_MODEL and int(row["context"]) == SUMMARY_CONTEXT:
            by_kv[row["kv"]].append(row)
    points = {kv: (statistics.mean(float(row["bits_per_element"]) for row in rows), statistics.mean(float(row["mean"]) for row in rows))
              for kv, rows in by_kv.items() if len(rows) == len(TEXTS)}
    figure, axis = plt.subplots(figsize=(7.2, 4.0))
    for name in ("mikv", "uniform formats (rtn)"):
        line = sorted(point for kv, point in points.items() if family(kv) == name)
        axis.plot(*zip(*line), color=FAMILIES[name], linewidth=1.4)
    for kv, (label, offset) in SUMMARY_LABELS.items():
        axis.plot(*points[kv], color=FAMILIES[family(kv)], marker="o", markersize=5)
        axis.annotate(label, points[kv], xytext=offset, textcoords="offset points", color=FAMILIES[family(kv)], fontsize=9)
    logarithmic(axis)
    axis.set_xlim(1.8, 9.6)
    axis.set_ylim(5e-4, 20)
    axis.set_xlabel("bits per element, everything counted (f16: 16)")
    axis.set_ylabel("mean KL divergence, nats")
    axis.set_title(f"{SUMMARY_MODEL}, {SUMMARY_CONTEXT:,} tokens: lower left is better", fontsize=10, loc="left")
    figure.subplots_adjust(left=0.11, right=0.98, top=0.92, bottom=0.12)
    save(figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="KIND=FILE.json")
    parser.add_argument("--table", type=Path, default=DOCS / "results" / "quality.csv", help="(default: docs/results/quality.csv)")
    parser.add_argument("-o", "--output", type=Path, default=DOCS, help="folder of the pictures (default: docs)")
    options = parser.parse_args()

    table = read_table(options.table)
    for argument in options.files:
        kind, _, file = argument.partition("=")
        if kind not in TEXTS or not file:
            parser.error(f"{argument}: name a file as one of {', '.join(f'{k}=FILE' for k in TEXTS)}")
        for row in rows_of(json.loads(Path(file).read_text()), kind):
            table[tuple(row[key] for key in KEY)] = row
    if not table:
        parser.error(f"{options.table} has no rows; name files to take into it")
    write_table(options.table, table)
    draw_frontier(table, options.output / "frontier.svg")
    draw_summary(table, options.output / "summary.svg")


if __name__ == "__main__":
    main()
