#!/usr/bin/env python3
"""Draws docs/frontier.svg from docs/frontier.csv: divergence against bits, a panel for each model and length.

    scripts/plot_frontier.py [prose=a.json code=b.json ...]

What `mikv eval kld -o FILE.json` wrote is taken into the table first, each file named by the kind of its text: a row takes the place of an
older one of the same model, length, text and cache. Needs matplotlib (PyPI: matplotlib==3.9.2)."""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "mikv", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402

DOCS = Path(__file__).parent.parent / "docs"
KEY = ["model", "context", "text", "kv"]
FIGURES = ["bits_per_element", "mean", "median", "p99", "same_top", "n"]
MARKERS = {"prose": "o", "code": "s", "dialogue": "^"}
FAMILIES = {"mikv": "#1f5fbf", "mikv, streaming prefill": "#7fb2f0", "equal bits for all (rtn)": "#d9822b", "equal bits, centred and rotated": "#3c9a5f",
            "paper": "#8b5fbf", "llama.cpp, exact prefill": "#222222", "llama.cpp": "#999999", "evicting (h2o)": "#c0392b"}


def family(kv: str) -> str:
    if kv.startswith("llama:"):
        return "llama.cpp, exact prefill" if "exact" in kv else "llama.cpp"
    if kv.startswith("rtn"):
        return "equal bits, centred and rotated" if "outlier" in kv else "equal bits for all (rtn)"
    if kv.startswith("h2o"):
        return "evicting (h2o)"
    if kv.startswith("mikv-paper"):
        return "paper"
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="KIND=FILE.json")
    parser.add_argument("--table", type=Path, default=DOCS / "frontier.csv", help="(default: docs/frontier.csv)")
    parser.add_argument("-o", "--output", type=Path, default=DOCS / "frontier.svg", help="(default: docs/frontier.svg)")
    options = parser.parse_args()

    table = read_table(options.table)
    for argument in options.files:
        kind, _, file = argument.partition("=")
        if kind not in MARKERS or not file:
            parser.error(f"{argument}: name a file as one of {', '.join(f'{k}=FILE' for k in MARKERS)}")
        for row in rows_of(json.loads(Path(file).read_text()), kind):
            table[tuple(row[key] for key in KEY)] = row
    if not table:
        parser.error(f"{options.table} has no rows; name files to take into it")
    write_table(options.table, table)

    panels = defaultdict(lambda: defaultdict(list))  # (model, context) -> (family, kind) -> points
    for row in table.values():
        point = (float(row["bits_per_element"]), float(row["mean"]))
        if point[1] > 0:
            panels[row["model"], int(row["context"])][family(row["kv"]), row["text"]].append(point)
    models = sorted({model for model, _ in panels}, reverse=True)
    contexts = sorted({context for _, context in panels})

    figure, axes = plt.subplots(len(models), len(contexts), figsize=(4.1 * len(contexts), 2.9 * len(models) + 0.7), sharex=True, sharey=True, squeeze=False)
    for i, model in enumerate(models):
        for j, context in enumerate(contexts):
            axis, lines = axes[i][j], panels.get((model, context))
            axis.set_title(f"{model}, {context:,} tokens", fontsize=9)
            if lines is None:
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#888888")
                lines = {}
            for (name, kind), points in lines.items():
                x, y = zip(*sorted(points))
                axis.plot(x, y, color=FAMILIES[name], marker=MARKERS[kind], markersize=4, linewidth=0 if name.startswith("llama.cpp") else 0.9)
            axis.set_yscale("log")
            axis.set_xlim(1.8, 9.6)
            axis.grid(True, which="major", linewidth=0.4, color="#dddddd")
            if j == 0:
                axis.set_ylabel("mean KL divergence, nats")
            if i + 1 == len(models):
                axis.set_xlabel("bits an element, everything counted")
    used = {name for lines in panels.values() for name, _ in lines}
    handles = [Line2D([], [], color=colour, label=name) for name, colour in FAMILIES.items() if name in used]
    handles += [Line2D([], [], color="#444444", marker=marker, linewidth=0, markersize=4, label=kind) for kind, marker in MARKERS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=2 + len(contexts), segmenton=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(options.output, metadata={"Date": None})


if __name__ == "__main__":
    main()
