#!/usr/bin/env python3
"""Takes what `mikv eval suite` found into docs/results/suite.csv.

    scripts/collect_results.py --machine "Xeon, 2 cores" RESULTS/summary.json ...

A row for each model, task and cache; one that is there already is replaced. Line retrieval of other than 20 lines is a
task of its own, "lines: 100". The command is made from the run's options; folders are left out of it, as they are the
user's own."""

import argparse
import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "results" / "suite.csv"
COLUMNS = ["model", "task", "kv", "score", "n", "low", "high", "lost", "won", "p", "log_likelihood", "difference", "standard_error", "bits_per_element", "machine", "commit", "command", "date"]
KEY = COLUMNS[:3]

#: Options that say what was asked, with the value that goes without saying.
SAID = {"limit": None, "seed": 7, "lines": 20, "slots": 1, "ctx": 4096, "gsm8k_shots": 5, "mmlu_subjects": None, "mmlu_shots": 5,
        "humaneval_shots": 0, "context_sentences": 40}


def command_of(options: dict) -> str:
    words = ["mikv eval suite", f"-m {Path(options['model']).stem}", f"--tasks {options['tasks']}", "--kv ..."]
    words += [f"--{name.replace('_', '-')} {options[name]}" for name, usual in SAID.items() if options.get(name) != usual]
    return " ".join(words)


def task_of(row: dict, options: dict) -> str:
    own = row["task"] == "lines" and options["lines"] != SAID["lines"]
    return f"lines: {options['lines']}" if own else row["task"]


def number(x: float | None, digits: int = 4) -> str:
    return "" if x is None else f"{x:.{digits}f}"


def rows_of(path: Path, machine: str) -> list[dict]:
    run = json.loads(path.read_text())
    options = run["meta"]["options"]
    rows = []
    for row in run["rows"]:
        versus = row["versus_full"] or {}
        apart = versus.get("log_likelihood") or {}
        rows.append({
            "model": Path(options["model"]).stem, "task": task_of(row, options), "kv": row["kv"], "score": number(row["score"]), "n": row["n"],
            "low": number(row["interval"][0]), "high": number(row["interval"][1]), "lost": versus.get("lost", ""), "won": versus.get("won", ""),
            "p": number(versus.get("p")), "log_likelihood": number(row.get("log_likelihood")), "difference": number(apart.get("mean")),
            "standard_error": number(apart.get("standard_error")), "bits_per_element": number(row["bits_per_element"], 2),
            "machine": machine, "commit": run["meta"]["commit"], "command": command_of(options), "date": run["meta"]["date"][:10],
        })
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("summaries", nargs="+", type=Path, metavar="SUMMARY.json")
    parser.add_argument("--machine", required=True, help="processor and cores, without a name of the machine")
    options = parser.parse_args()
    there = {}
    if FILE.exists():
        with open(FILE, newline="") as file:
            there = {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}
    for path in options.summaries:
        try:
            found = rows_of(path, options.machine)
        except (OSError, ValueError, KeyError) as error:
            print(f"collect_results: {path}: {error!r}; is it the summary.json of a run?", file=sys.stderr)
            return 2
        there |= {tuple(row[name] for name in KEY): row for row in found}
    with open(FILE, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(there.values(), key=lambda row: tuple(str(row[name]) for name in KEY)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
