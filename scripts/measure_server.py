#!/usr/bin/env python3
"""What `mikv server` promises, measured on real servers (docs/reliability.md).

    scripts/measure_server.py greedy   -m FILE   20 greedy texts, alone and 4 at a time: --kv full against stock llama-server
    scripts/measure_server.py drafts   -m FILE   20 greedy texts after 600 tokens: with drafts (the model's own), and 4 at a time, against alone; ours and stock's
    scripts/measure_server.py contexts -m FILE   16 contexts of 4,096 tokens within a fifth of their f16 size, and in stock
    scripts/measure_server.py large    -m FILE   -c 1048576 -np 32 within 2 GiB; 4 slots of 8k tokens answer
    scripts/measure_server.py session  -m FILE   save and load of a long context: bytes, times, the text that follows
    scripts/measure_server.py pause    -m FILE   the longest step after a prompt against the median one, alone and beside three slots that generate; --kv A B ... and stock
    scripts/measure_server.py soak     -m FILE   4 clients with cancels, shared prefixes, saves and loads: errors, answers, memory

Prints JSON. -m also takes the names of `mikv model list`. Texts are random lines to be looked up, from --seed."""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MIKV = ROOT / "build" / "bin" / "mikv"


def stock_server() -> str:
    lines = dict(line.split("=", 1) for line in (ROOT / "build" / "llama.txt").read_text().splitlines())
    return f"{lines['BUILD']}/bin/llama-server"


class Server:
    """A server process; `kv` None: stock llama-server."""

    def __init__(self, model: str, kv: str | None, *flags: str):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder = tempfile.mkdtemp(prefix="mikv-server-")
        self.report = f"{self.folder}/report.json"
        program = [stock_server()] if kv is None else [str(MIKV), "server", "--kv", kv, "--kv-report", self.report]
        self.log = open(f"{self.folder}/log", "w")
        self.process = subprocess.Popen([*program, "-m", model, "--port", str(self.port), "-t", "2", "--slot-save-path", self.folder, *flags],
                                        stdout=self.log, stderr=subprocess.STDOUT)

    def __enter__(self):
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").read()
                return self
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"the server ended: {Path(self.folder, 'log').read_text()[-600:]}")
                time.sleep(0.1)
        sys.exit("the server did not start within two minutes")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            return json.load(urllib.request.urlopen(request, timeout=3600))
        except urllib.error.HTTPError as error:
            return {"error": error.code, "content": "", "body": error.read().decode()[:300]}

    def complete(self, prompt: str, n: int, slot: int = -1) -> dict:
        return self.post("/completion", {"prompt": prompt, "n_predict": n, "temperature": 0, "id_slot": slot, "cache_prompt": True})

    def token_times(self, prompt: str, n: int) -> list[float]:
        """Seconds between the tokens of an answer, from the first one on."""
        body = {"prompt": prompt, "n_predict": n, "temperature": 0, "stream": True, "cache_prompt": False, "ignore_eos": True}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=3600) as stream:
            at = [time.monotonic() for line in stream if line.startswith(b"data:")]
        return [b - a for a, b in zip(at, at[1:-1])]  # the last line is a summary

    def memory(self) -> dict:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines())
        kib = lambda name: int(status[name].split()[0]) * 1024
        return {"resident": kib("VmRSS"), "resident_anonymous": kib("RssAnon"), "peak_resident": kib("VmHWM"), "address_space": kib("VmSize")}

    def figures(self) -> dict:
        time.sleep(1.2)  # it is written once a second, after a step
        self.complete("a", 1)
        return json.loads(Path(self.report).read_text()) if os.path.exists(self.report) else {}

    def log_lines(self) -> list[str]:
        return [line.strip() for line in Path(self.folder, "log").read_text().splitlines() if line.startswith("mikv:")]


ADJECTIVES = "quiet brave amber hollow gentle rapid solemn vivid crisp mellow stern lucid humble eager frosty golden".split()
NOUNS = "river falcon lantern meadow anchor violin harbor copper orchard glacier beacon saddle canyon thistle marble comet".split()


def lines_task(rng: random.Random, n: int) -> tuple[str, list[tuple[str, int]]]:
    """A text of n lines, and (name, number) of each line."""
    pairs = [f"{a}-{b}" for a in ADJECTIVES for b in NOUNS]
    names = rng.sample(pairs if n <= len(pairs) else [f"{pair}-{c}" for pair in pairs for c in NOUNS], n)
    entries = [(name, rng.randint(10000, 99999)) for name in names]
    text = "Below is a record of lines. Remember the number of each line.\n\n"
    return text + "".join(f"line {name}: REGISTER_CONTENT is <{number}>\n" for name, number in entries), entries


VERBS = "follows crosses remembers paints avoids measures guards borrows".split()


def filler(rng: random.Random, characters: int) -> str:
    """Sentences to read past."""
    text = ""
    while len(text) < characters:
        a, b = rng.sample(NOUNS, 2)
        text += f"The {rng.choice(ADJECTIVES)} {a} {rng.choice(VERBS)} the {rng.choice(ADJECTIVES)} {b} near the {rng.choice(NOUNS)}. "
    return text + "\n\n"


def question(text: str, name: str) -> str:
    return f"{text}\nNow the REGISTER_CONTENT of one line is asked for.\nThe <REGISTER_CONTENT> in line {name} is <"


PROMPTS = [f"Question: {q}\nAnswer:" for q in (
    "What is the capital of France?", "How many days does a week have?", "What is 7 times 8?", "What colour is the sky on a clear day?",
    "Which planet is closest to the sun?", "What is the opposite of hot?", "How many legs does a spider have?", "What is the first month of the year?",
    "Which animal barks?", "What do bees make?")] + [
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,", "Monday, Tuesday, Wednesday, Thursday,", "2, 4, 6, 8, 10, 12, 14, 16,", "a b c d e f g h i j k l",
    "January, February, March, April,", "10, 9, 8, 7, 6, 5,", "red, red, blue, red, red, blue, red, red,", "one, two, three, four, five,",
    "x = 1\ny = 2\nz = 3\nx = 1\ny = 2\nz = 3\nx = 1\n", "5, 10, 15, 20, 25, 30, 35,"]


def greedy(model: str, options) -> dict:
    result = {}
    texts = {}
    # Twice stock: which requests meet in a batch depends on when they come, and a batch of another size rounds otherwise.
    for name, kv in (("stock", None), ("full", "full"), ("stock again", None)):
        with Server(model, kv, "-c", "8192", "-np", "4") as server:
            texts[name, 1] = [server.complete(p, 24)["content"] for p in PROMPTS]
            with ThreadPoolExecutor(4) as pool:
                texts[name, 4] = list(pool.map(lambda p: server.complete(p, 24)["content"], PROMPTS))
    for n in (1, 4):
        result[f"equal_{n}_at_a_time"] = sum(a == b for a, b in zip(texts["stock", n], texts["full", n]))
        result[f"stock_equals_itself_{n}_at_a_time"] = sum(a == b for a, b in zip(texts["stock", n], texts["stock again", n]))
    result["stock_alone_equals_stock_4_at_a_time"] = sum(a == b for a, b in zip(texts["stock", 1], texts["stock", 4]))
    result["of"] = len(PROMPTS)
    return result


def drafts(model: str, options) -> dict:
    rng = random.Random(options.seed)
    prompts = [filler(rng, 2400) + prompt for prompt in PROMPTS]
    with_drafts = ["--model-draft", model, "--spec-type", "draft-simple", "--spec-draft-n-max", "4"]
    result = {"of": len(prompts)}
    for name, kv in (("mikv", options.kv), ("stock", None)):

        def texts(at_a_time: int, *flags: str) -> tuple[list[str], list[dict]]:
            with Server(model, kv, "-c", "8192", "-np", "4", *flags) as server, ThreadPoolExecutor(at_a_time) as pool:
                answers = list(pool.map(lambda prompt: server.complete(prompt, 24), prompts))
            return [answer["content"] for answer in answers], [answer["timings"] for answer in answers]

        # What drafts are to be compared with is not equality alone: any other size of batches rounds otherwise.
        (alone, _), (drafted, timings), (four, _) = texts(1), texts(1, *with_drafts), texts(4)
        equal = lambda a, b: sum(x == y for x, y in zip(a, b))
        result[name] = {"equal": equal(alone, drafted), "equal_4_at_a_time": equal(alone, four), "drafted": sum(t.get("draft_n", 0) for t in timings),
                        "accepted": sum(t.get("draft_n_accepted", 0) for t in timings)}
    return result


def contexts(model: str, options) -> dict:
    rng = random.Random(options.seed)
    # As many lines as the smallest models can look up, in the middle of about 4,000 tokens.
    tasks = []
    for _ in range(options.contexts):
        lines, entries = lines_task(rng, options.lines)
        rest = options.characters - len(lines)
        tasks.append((filler(rng, rest // 2) + lines + "\n" + filler(rng, rest // 2), entries))
    asked = [[rng.choice(entries) for _ in range(options.turns)] for _, entries in tasks]
    result = {"contexts": options.contexts, "lines": options.lines}
    f16 = None
    arms = [("mikv", options.kv), ("stock", None)][: 1 if options.no_stock else 2]
    for name, kv in arms:
        flags = ["-c", str(options.contexts * 4352), "-np", str(options.contexts)]
        if kv is not None:
            estimate = json.loads(subprocess.run([str(MIKV), "estimate", "-m", model, "-c", str(options.contexts * 4096), "--kv", kv, "--json"],
                                                 check=True, capture_output=True, text=True).stdout)
            f16 = estimate["rows"][0]["f16_bytes"]
            budget = int(f16 * options.share)
            flags += ["--kv-budget", str(budget)]
            result["budget_bytes"] = budget
        with Server(model, kv, *flags) as server:
            began, correct, n_tokens = time.monotonic(), [0] * options.contexts, 0
            for turn in range(options.turns):
                with ThreadPoolExecutor(options.contexts) as pool:
                    answers = list(pool.map(lambda i: server.complete(question(tasks[i][0], asked[i][turn][0]), 8, i), range(options.contexts)))
                for i, answer in enumerate(answers):
                    correct[i] += answer["content"].strip().startswith(str(asked[i][turn][1]))
                    if turn == 0:
                        n_tokens += answer.get("tokens_evaluated", 0)
            result[name] = {"correct": sum(correct), "correct_by_context": correct, "of": options.turns * options.contexts, "tokens": n_tokens, "seconds": round(time.monotonic() - began),
                            "memory": server.memory()}
            if kv is not None:
                result[name]["report"] = server.figures()
                result[name]["log"] = server.log_lines()
        print(json.dumps(result[name]), file=sys.stderr, flush=True)
    return result


def large(model: str, options) -> dict:
    rng = random.Random(options.seed)
    with Server(model, options.kv, "-c", "1048576", "-np", "32", "--kv-budget", "2GiB") as server:
        started = server.memory()
        tasks = [lines_task(rng, options.lines) for _ in range(4)]
        asked = [rng.choice(entries) for _, entries in tasks]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda i: server.complete(question(tasks[i][0], asked[i][0]), 8, i), range(4)))
        return {"started": started, "tokens": [a.get("tokens_evaluated", 0) for a in answers],
                "answers": [[a["content"], asked[i][1]] for i, a in enumerate(answers)],
                "correct": sum(a["content"].strip().startswith(str(asked[i][1])) for i, a in enumerate(answers)),
                "filled": server.memory(), "report": server.figures(), "log": server.log_lines()}


def session(model: str, options) -> dict:
    rng = random.Random(options.seed)
    text, entries = lines_task(rng, options.characters // 55)  # characters of a line
    prompt = question(text, rng.choice(entries)[0])
    with Server(model, options.kv, "-c", str(2 * 20480), "-np", "2") as server:
        began = time.monotonic()
        first = server.complete(prompt, 4, 0)  # the second token ends the prompt, which is compressed then
        prefill = time.monotonic() - began
        saved = server.post("/slots/0?action=save", {"filename": "long.bin"})
        bytes_used = json.loads(Path(server.report).read_text())["kv_bytes"]
        restored = server.post("/slots/1?action=restore", {"filename": "long.bin"})
        plain = server.complete(prompt + first["content"], 24, 0)
        loaded = server.complete(prompt + first["content"], 24, 1)
        return {"tokens": first.get("tokens_evaluated"), "prefill_seconds": round(prefill, 2), "file_bytes": saved.get("n_written"), "kv_bytes": bytes_used,
                "file_over_kv": round(saved.get("n_written", 0) / bytes_used, 4), "save_ms": saved["timings"]["save_ms"],
                "restore_ms": restored["timings"]["restore_ms"], "tokens_read_again": [plain["timings"]["prompt_n"], loaded["timings"]["prompt_n"]],
                "same_text": plain["content"] == loaded["content"], "text": plain["content"]}


def pause(model: str, options) -> dict:
    rng = random.Random(options.seed)
    n_others, n_tokens, result = 3, 96, {}
    arms = {kv: kv for kv in options.kv.split()} | {"stock": None}
    steps: dict[tuple[str, int], list[list[float]]] = {}  # of each repetition, the time of each step
    for repetition in range(options.repetitions):
        for name, kv in arms.items():
            with Server(model, kv, "-c", str(4 * 8192), "-np", "4", "--cache-ram", "0") as server, ThreadPoolExecutor(n_others) as pool:
                server.token_times("one", 8)  # what is made at the first use
                for others in (0, n_others):
                    running = [pool.submit(server.token_times, filler(rng, 400), 100000) for _ in range(others)]
                    if others:
                        time.sleep(2)
                    steps.setdefault((name, others), []).append(server.token_times(filler(rng, options.characters), n_tokens))
                    if others:
                        server.process.kill()  # they would generate for ever
                        for r in running:
                            r.exception()
            print(f"pause: {name}, repetition {repetition + 1} of {options.repetitions}", file=sys.stderr, flush=True)
    for (name, others), measured in steps.items():
        # A step's time is its median over repetitions: the longest of a hundred would be an accident of the machine.
        times = [statistics.median(times_of_step) for times_of_step in zip(*measured)]
        longest, median = max(times), statistics.median(times)
        result[f"{name}, {others} others"] = {"longest_ms": round(1000 * longest, 1), "median_ms": round(1000 * median, 1),
                                              "longest_against_median": round(longest / median, 2)}
    return result


def soak(model: str, options) -> dict:
    """Exits with 1 if a request failed, the answers got worse or the memory grew."""
    seconds, n_clients = options.duration * 60, 4
    shared = [lines_task(random.Random(options.seed + i), 30) for i in range(3)]  # prefixes that all clients use
    counts: dict[str, int] = {}
    errors: list[str] = []
    right: list[tuple[float, bool]] = []
    began = time.monotonic()

    def client(server: Server, slot: int) -> None:
        rng = random.Random(options.seed * 100 + slot)

        def act(name: str) -> None:
            text, entries = rng.choice(shared)
            entry = rng.choice(entries)
            prompt = question(text, entry[0])
            where = slot if rng.random() < 0.7 else -1
            if name == "ask":
                answer = server.complete(prompt, 8, where)
                if "error" in answer:
                    errors.append(f"{name}: {answer}")
                else:
                    right.append((time.monotonic() - began, answer["content"].strip().startswith(str(entry[1]))))
            elif name == "cancel":
                body = json.dumps({"prompt": prompt[rng.randint(0, 400):], "n_predict": 200, "stream": True, "id_slot": where}).encode()
                request = urllib.request.Request(f"http://127.0.0.1:{server.port}/completion", body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=600) as stream:
                    stream.read(rng.choice([1, 300, 2000]))
            elif name == "generate":
                answer = server.complete(prompt, 80, where)
                if "error" in answer:
                    errors.append(f"{name}: {answer}")
            else:
                # A slot that holds nothing is refused; that is right, and no error of ours.
                for step in ("save", "restore"):
                    answer = server.post(f"/slots/{slot}?action={step}", {"filename": f"client-{slot}.bin"})
                    if "error" in answer and answer["error"] != 400:
                        errors.append(f"{step}: {answer}")

        while time.monotonic() - began < seconds:
            name = rng.choices(["ask", "cancel", "generate", "save"], [5, 2, 1, 1])[0]
            try:
                act(name)
            except OSError as error:
                errors.append(f"{name}: {error}")
            counts[name] = counts.get(name, 0) + 1

    samples: list[tuple[float, int]] = []
    # The server keeps prompts for later in memory of its own (--cache-ram); that must be full for memory to be flat.
    with Server(model, options.kv, "-c", "8192", "-np", str(n_clients), "--cache-ram", "16") as server, ThreadPoolExecutor(n_clients) as pool:
        running = [pool.submit(client, server, slot) for slot in range(n_clients)]
        while not all(r.done() for r in running):
            time.sleep(2)
            if server.process.poll() is not None:
                errors.append("the server ended")
                break
            samples.append((time.monotonic() - began, server.memory()["resident_anonymous"]))
            left = max(0, seconds - samples[-1][0])
            print(f"soak: {sum(counts.values())} requests, {len(errors)} errors, {samples[-1][1] >> 20} MiB, {left / 60:.1f} min left",
                  file=sys.stderr, flush=True)
        for r in running:
            r.result()
        log = server.log_lines()

    def in_part(values: list, part: int) -> list:
        return [v for at, v in values if seconds * part / 4 <= at < seconds * (part + 1) / 4]

    memory = [statistics.median(in_part(samples, part) or [0]) for part in range(4)]
    accuracy = [round(sum(r := in_part(right, part)) / max(1, len(r)), 3) for part in range(4)]
    result = {"requests": counts, "errors": errors[:20], "n_errors": len(errors), "median_anonymous_bytes_by_quarter": memory,
              "most_anonymous_bytes_by_quarter": [max(in_part(samples, part), default=0) for part in range(4)],
              "right_answers_by_quarter": accuracy, "log": log}
    if errors or memory[3] > 1.05 * memory[1] or accuracy[3] < accuracy[0] - 0.1:
        print(json.dumps(result, indent=1))
        sys.exit("the soak failed: errors, memory that grew by more than 5 % between the second and the last quarter, or worse answers")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["greedy", "drafts", "contexts", "large", "session", "pause", "soak"])
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--kv", default="mikv")
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--turns", type=int, default=12, help="questions to each context of `contexts`")
    parser.add_argument("--share", type=float, default=0.2, help="of their f16 size that `contexts` may take")
    parser.add_argument("--lines", type=int, default=0, help="lines of a context (default: about 4,000 tokens, 8,000 for large)")
    parser.add_argument("--characters", type=int, default=0, help="of the text of `session` or of a context, about (default: 16,000 and 4,000 tokens)")
    parser.add_argument("--duration", type=float, default=10, help="minutes of `soak`")
    parser.add_argument("--no-stock", action="store_true", help="`contexts` without stock llama.cpp")
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="of `pause`")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.lines = options.lines or (25 if options.what == "contexts" else 455)
    options.characters = options.characters or (50000 if options.what == "session" else 19000)
    model = options.model
    if not os.path.exists(model):
        model = subprocess.run([str(MIKV), "model", "path", model], check=True, capture_output=True, text=True).stdout.strip()
    began = time.monotonic()
    result = {"contexts": contexts, "drafts": drafts, "greedy": greedy, "large": large, "session": session, "pause": pause, "soak": soak}[options.what](model, options)
    result["minutes"] = round((time.monotonic() - began) / 60, 1)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
