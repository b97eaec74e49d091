"""The table, the JSON file and the plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._files import write_whole

_COLUMNS = (
    ("cache", "cache", "{}"),
    ("kind", "kind", "{}"),
    ("bits", "bits_per_element", "{:.2f}"),
    ("MiB", "mib", "{:.2f}"),
    ("KLD mean", "kld_mean", "{:.4f}"),
    ("p99", "kld_p99", "{:.3f}"),
    ("same top %", "same_top_percent", "{:.1f}"),
    ("x mikv", "times_mikv_at_equal_bits", "{:.1f}"),
    ("lines", "lines", "{}"),
    ("cache ms", "cache_ms", "{:.2f}"),
    ("step ms", "step_ms", "{:.0f}"),
)


def table(rows: list[dict[str, Any]]) -> str:
    """One row per cache; "-" where nothing was measured."""
    cells = [[title for title, _, _ in _COLUMNS]]
    for row in rows:
        more = dict(row)
        more["mib"] = row["bytes"] / 2**20 if row["bytes"] is not None else None
        more["same_top_percent"] = 100 * row["same_top"] if row["same_top"] is not None else None
        more["lines"] = f"{row['lines_right']}/{row['lines_asked']}" if row["lines_asked"] else None
        for name in ("cache", "step"):
            seconds = row[f"{name}_s_per_token"]
            more[f"{name}_ms"] = 1000 * seconds if seconds is not None else None
        cells.append(["-" if more.get(key) is None else form.format(more[key]) for _, key, form in _COLUMNS])
    used = [i for i in range(len(_COLUMNS)) if i < 3 or any(row[i] != "-" for row in cells[1:])]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
    texts = [
        "  ".join(row[i].ljust(widths[i]) if i < 2 else row[i].rjust(widths[i]) for i in used).rstrip() for row in cells
    ]
    return "\n".join(texts)


def write_json(path: str, meta: dict[str, Any], rows: list[dict[str, Any]], not_run: dict[str, str]) -> None:
    peers = [{"peer": name, "reason": reason} for name, reason in not_run.items()]
    write_whole(Path(path), json.dumps({"meta": meta, "rows": rows, "not_run": peers}, indent=1) + "\n")


_COLOURS = {"mikv": "#1f5fa8", "peer": "#b3521e", "simulated": "#777777"}
_MARKS = {"mikv": "o", "peer": "s", "simulated": "^"}


def plot(path: str, title: str, rows: list[dict[str, Any]]) -> None:
    """Mean divergence against bits per element, on a logarithmic axis; simulations have marks of their own."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a smaller file
    matplotlib.rcParams["svg.hashsalt"] = "mikv"  # the same file each time
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6))
    for kind in _COLOURS:
        points = [r for r in rows if r["kind"] == kind and r["bits_per_element"] and r["kld_mean"]]
        points = [r for r in points if r["kld_mean"] > 1e-6]  # the full cache has no place on the axis
        if not points:
            continue
        x, y = [r["bits_per_element"] for r in points], [r["kld_mean"] for r in points]
        axes.scatter(x, y, c=_COLOURS[kind], marker=_MARKS[kind], label=kind, zorder=3)
        for r in points:
            at = (r["bits_per_element"], r["kld_mean"])
            axes.annotate(r["cache"], at, xytext=(5, 3), textcoords="offset points", fontsize=7, color=_COLOURS[kind])
    axes.set_yscale("log")
    axes.set_xlabel("bits per element, all in")
    axes.set_ylabel("mean KL divergence to DynamicCache")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
