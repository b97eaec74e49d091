#!/usr/bin/env python3
"""Writes docs/results/python_compare.csv from the JSON files of `python -m mikv.compare -o`.

    scripts/collect_compare.py --machine "Intel Xeon, 2 cores, shared" --date 2026-11-28 FILE.json ...

One row per model, context, text and cache, and one of all texts together (text "all"), which has size and times."""

import argparse
import csv
import json
import math
import re
import shlex
import statistics
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
COLUMNS = ["model", "context", "text", "cache", "kind", "bits_per_element", "mean", "median", "p99", "same_top", "n",
           "times_mikv_at_equal_bits", "cache_ms", "step_ms", "machine", "command", "date"]

#: Fewer whole steps than these are no measurement.
LEAST_TIMED = 5


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def shown(number) -> str:
    return "" if number is None else f"{number:.6g}"


def merged(paths: list[str]) -> dict[tuple, dict]:
    """What the runs found, by model, context and cache: several runs of one are one."""
    found: dict[tuple, dict] = {}
    for path in paths:
        run = json.loads(Path(path).read_text())
        meta = run["meta"]
        words = [Path(word).name if "/" in word else word for word in shlex.split(meta["command"])]  # folders are the user's own
        n_timed = meta["timed"] * meta["chunks"] * len(meta["texts"])
        for row in run["rows"]:
            if not row["n"]:
                continue
            key = (meta["model"].removesuffix(".gguf"), meta["context"], row["cache"])
            here = found.setdefault(key, {"kind": row["kind"], "divergences": {}, "bits": [], "same_top": [], "cache_ms": [], "step_ms": [], "commands": []})
            here["divergences"] |= row["divergences"]
            here["bits"] += [row["bits_per_element"]] * row["n"]
            here["same_top"] += [row["same_top"]] * row["n"]
            for name in ("cache", "step"):
                if row[f"{name}_s_per_token"] is not None and (name == "cache" or n_timed >= LEAST_TIMED):
                    here[f"{name}_ms"].append(1000 * row[f"{name}_s_per_token"])
            if (command := " ".join(words)) not in here["commands"]:
                here["commands"].append(command)
    return found


def times_mikv(found: dict[tuple, dict], key: tuple) -> float | None:
    """Divergence over that of mikv's own caches at the same bits, read between two points in bits and log divergence."""
    bits = statistics.fmean(found[key]["bits"])

    def mean(row: dict) -> float:
        return statistics.fmean([d for values in row["divergences"].values() for d in values])

    texts = set(found[key]["divergences"])
    ladder = sorted((statistics.fmean(row["bits"]), mean(row)) for other, row in found.items()
                    if other[:2] == key[:2] and re.match(r"mikv(-max|-hq)?(:|$)", other[2]) and set(row["divergences"]) == texts)
    for (b0, d0), (b1, d1) in zip(ladder, ladder[1:]):
        if b0 <= bits <= b1 and found[key]["kind"] != "mikv":
            share = (bits - b0) / (b1 - b0)
            return mean(found[key]) / math.exp((1 - share) * math.log(d0) + share * math.log(d1))
    return None


def rows_of(found: dict[tuple, dict], machine: str, date: str):
    for key, row in found.items():
        model, context, cache = key
        texts = {**row["divergences"], "all": [d for values in row["divergences"].values() for d in values]}
        for text, values in texts.items():
            made = {"model": model, "context": context, "text": text, "cache": cache, "kind": row["kind"],
                    "bits_per_element": shown(statistics.fmean(row["bits"])), "mean": shown(statistics.fmean(values)),
                    "median": shown(statistics.median(values)), "p99": shown(quantile(values, 0.99)), "n": len(values),
                    "machine": machine, "command": "; ".join(row["commands"]), "date": date}
            if text == "all":
                made |= {"same_top": shown(statistics.fmean(row["same_top"])), "times_mikv_at_equal_bits": shown(times_mikv(found, key))}
                for name in ("cache_ms", "step_ms"):
                    made[name] = shown(statistics.median(row[name]) if row[name] else None)
            yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE.json")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--date", required=True)
    args = parser.parse_args()
    with open(RESULTS / "python_compare.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows_of(merged(args.files), args.machine, args.date))


if __name__ == "__main__":
    main()
