#!/usr/bin/env python3
"""llama.cpp's own C++ tests of states and threads against its stock cache and with mikv preloaded, side by side.

    tests/llama_cpp/run.py --model FILE --build build [--kv full,mikv] [--tests save-load-state,...] [-o FILE]

The tests are compiled from llama.cpp's source as it is, against the libraries that mikv was built with. Besides the given
model they get tiny ones of random weights, which llama.cpp's test-llama-archs writes: other kinds of caches, and recurrent
layers. What stock llama.cpp passes counts. Fails (exit code 1) if a cache of ours fails one of those, or if a run that should
have used mikv did not."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from llama_server.run import STOCK, llama_build  # noqa: E402

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"
TIMEOUT_SECONDS = 900
CASE = re.compile(r"^=== Test \d+: (.*) ===$", re.M)
GIVEN = "the model of --model"
WRITER = "test-llama-archs.cpp"
# With factors of RoPE (llama, phi3), sliding windows (gemma3, gpt-oss, cohere2), and recurrent layers.
TINY = ("llama-dense", "phi3-dense", "gemma3-dense", "gpt-oss-moe", "cohere2-dense", "falcon-h1-dense")
TINY_WITH_ROLLBACK = ("lfm2-dense", "nemotron_h-dense", "qwen35-dense")


@dataclass(frozen=True)
class Run:
    name: str
    source: str
    arguments: tuple[str, ...] = ()
    model: str | None = GIVEN
    decodes: bool = True  # with our cache it must have been used


# Arguments are those of llama.cpp's tests/CMakeLists.txt.
# 600 random tokens instead of 100: mikv compresses nothing of fewer than 256.
RUNS = (
    Run("save-load-state", "test-save-load-state.cpp"),
    Run("save-load-state, 600 tokens", "test-save-load-state.cpp", ("-b", "600")),
    Run("state-restore-fragmented", "test-state-restore-fragmented.cpp"),
    Run("thread-safety", "test-thread-safety.cpp",
        ("-ngl", "99", "-p", "The meaning of life is", "-n", "128", "-c", "256", "-ub", "32", "-np", "4", "-t", "2")),
    Run("recurrent-state-rollback", "test-recurrent-state-rollback.cpp", decodes=False),
    Run("batch-alloc", "test-batch-alloc.cpp", model=None, decodes=False),
    *(Run(f"save-load-state, {tiny}", "test-save-load-state.cpp", model=tiny) for tiny in TINY + TINY_WITH_ROLLBACK),
    *(Run(f"recurrent-state-rollback, {tiny}", "test-recurrent-state-rollback.cpp", model=tiny) for tiny in TINY_WITH_ROLLBACK),
)


def compiled(source: Path, llama_source: Path, llama_build_folder: Path, work: Path) -> Path:
    """The program, compiled again only if its source or the command has changed."""
    program, stamp = work / source.stem, work / f"{source.stem}.command"
    cache = (llama_build_folder / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", cache, re.M)[1]
    libraries = llama_build_folder / "bin"
    command = [compiler, "-std=c++17", "-O1", "-w", "-DLLAMA_SHARED", "-DGGML_SHARED", "-DGGML_BACKEND_SHARED", "-DGGML_USE_CPU",
               *(f"-I{llama_source / folder}" for folder in ("include", "ggml/include", "common", "src", "vendor")),
               str(source), "-o", str(program), f"-L{libraries}", f"-Wl,-rpath,{libraries}",
               "-lllama-common", "-lllama", "-lggml", "-lggml-cpu", "-lggml-base", "-pthread"]
    text = f"{source.stat().st_mtime_ns}\n" + "\n".join(command)
    if not (program.exists() and stamp.exists() and stamp.read_text() == text):
        print(f"llama.cpp tests: compiling {source.name}", flush=True)
        subprocess.run(command, check=True)
        stamp.write_text(text)
    return program


def tiny_models(writer: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for tiny in TINY + TINY_WITH_ROLLBACK:
        if not (folder / f"{tiny}.gguf").exists():
            subprocess.run([writer, "-a", tiny.rsplit("-", 1)[0], "-o", folder], check=True, capture_output=True)
    return folder


def results_of(run: Run, code: int, output: str) -> dict[str, str]:
    """Row of the table -> outcome: the program, and each test that it announces with a heading and closes with PASS."""
    skipped = code == 0 and "skipping for non-recurrent model" in output
    rows = {run.name: SKIPPED if skipped else PASSED if code == 0 else FAILED}
    if run.model not in (GIVEN, None):
        return rows
    parts = CASE.split(output)
    for heading, section in zip(parts[1::2], parts[2::2]):
        if heading != "baseline":  # it prints no PASS; the program fails with it
            rows[f"{run.name}: {heading}"] = PASSED if re.search(r"^PASS\b", section, re.M) else FAILED
    return rows


def run_arm(kv: str, runs: list[Run], programs: dict[str, Path], preload: Path, models: dict[str, Path],
            work: Path) -> dict[str, str]:
    results = {}
    folder = work / re.sub(r"\W+", "-", kv)
    folder.mkdir(exist_ok=True)
    for run in runs:
        report = folder / "report.json"
        report.unlink(missing_ok=True)
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
        if kv != STOCK:
            environment |= {"LD_PRELOAD": str(preload), "MIKV_KV": kv, "MIKV_KV_REPORT": str(report)}
        began = time.monotonic()
        log = folder / (re.sub(r"\W+", "-", run.name) + ".log")
        with open(log, "w") as out:
            command = [programs[run.source], *(("-m", models[run.model]) if run.model else ()), *run.arguments]
            try:  # the tests leave files where they run
                code = subprocess.run(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=TIMEOUT_SECONDS).returncode
            except subprocess.TimeoutExpired:
                code = -1
        rows = results_of(run, code, log.read_text(errors="replace"))
        unused = kv != STOCK and run.decodes and not (report.exists() and json.loads(report.read_text())["kv_steps_total"])
        if unused:
            rows = dict.fromkeys(rows, FAILED)
        results |= rows
        why = f": exit code {code}; see {log}" if code else ": mikv was not used" if unused else ""
        print(f"llama.cpp tests: {kv}: {run.name} {rows[run.name]} in {time.monotonic() - began:.0f} s{why}", flush=True)
    return results


def print_table(results: dict[str, dict[str, str]]) -> None:
    names = list(dict.fromkeys(name for arm in results.values() for name in arm))
    width = max(map(len, names))
    print("\n" + " " * width + "".join(f"  {kv:<9}" for kv in results))
    for name in names:
        print(f"{name:<{width}}" + "".join(f"  {arm.get(name, 'not run'):<9}" for arm in results.values()))
    print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--build", required=True, type=Path, help="mikv's build folder")
    parser.add_argument("--kv", default="full,mikv")
    parser.add_argument("--tests", default="", help="names, all by default")
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    options = parser.parse_args()
    build, model = options.build.resolve(), options.model.resolve()
    source, llama = llama_build(build.parent)
    work = build / "llama-cpp-tests"
    work.mkdir(exist_ok=True)
    preload = build / "lib" / "libmikv-llama.so"
    if not preload.exists():
        sys.exit(f"llama.cpp tests: there is no {preload}; run make first")

    wanted = options.tests.split(",") if options.tests else []
    runs = []
    for run in RUNS:
        needed = [run.source] if run.model in (GIVEN, None) else [run.source, WRITER]
        missing = [name for name in needed if not (source / "tests" / name).exists()]
        if missing:
            print(f"llama.cpp tests: {run.name} is left out; this llama.cpp has no {missing[0]}")
        elif not wanted or run.name.split(",")[0] in wanted:
            runs.append(run)
    models = {GIVEN: model}
    if any(run.model not in (GIVEN, None) for run in runs):
        tiny = tiny_models(compiled(source / "tests" / WRITER, source, llama, work), work / "models")
        models |= {name: tiny / f"{name}.gguf" for name in TINY + TINY_WITH_ROLLBACK}
    programs = {source_name: compiled(source / "tests" / source_name, source, llama, work) for source_name in {run.source: 0 for run in runs}}

    results = {kv: run_arm(kv, runs, programs, preload, models, work) for kv in (STOCK, *options.kv.split(","))}
    counted = [name for name, outcome in results[STOCK].items() if outcome == PASSED]
    if not counted:
        sys.exit("llama.cpp tests: stock llama.cpp passed none; something is wrong with the set-up")
    print_table(results)
    failures = 0
    for kv in options.kv.split(","):
        passed = sum(results[kv].get(name) == PASSED for name in counted)
        failures += len(counted) - passed
        print(f"llama.cpp tests: {kv}: {passed} of the {len(counted)} that stock llama.cpp passes")
    if options.output:
        options.output.write_text(json.dumps({"counted": counted, "results": results}, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
