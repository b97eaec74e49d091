#!/usr/bin/env python3
"""A stand-in for the mikv command: estimate, server and eval lines, without a model.

It answers GSM8K's questions "What is A plus B?" and HumanEval's "adds N", wrongly for the cache `h2o` where N is odd. In a
chat it obeys the system prompt's quoted words, and tells all other numbers in it as `h2o`; without a system prompt it
says the question, and as `h2o` every word of it but the last. Of choices A to D it likes the one that is the sum, or
the next, as `h2o`. Needles in a haystack are found, but not by `h2o`. Tokens are words.
FAKE_MIKV names a folder. It counts requests in `requests` there. A file `die` ends the server at that many of them, `cut`
after two pieces of the answer to that one, `slow` is the seconds of each, and `answers` has other answers by question.
"""

import json
import os
import re
import shlex
import sys
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(os.environ["FAKE_MIKV"])


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def estimate() -> None:
    rows = []
    for kv in option("--kv").split(","):
        if kv == "wrong":
            sys.exit("mikv: --kv wrong: no such preset; see mikv info")
        rows.append({"kv": kv, "bytes": 4500, "bits_per_element": 4.5})
    print(json.dumps({"meta": {"model_description": "fake 1M", "commit": "c0ffee"}, "rows": rows}))


def answer(prompt: str, kv: str) -> str:
    if (FOLDER / "slow").exists():
        time.sleep(float((FOLDER / "slow").read_text()))
    if (FOLDER / "answers").exists():
        said = json.loads((FOLDER / "answers").read_text())
        return next(text for question, text in said.items() if question in prompt)
    needles = re.findall(r"needle (\w+)", prompt)
    if needles:
        return "nothing" if kv == "h2o" else " and ".join(needles)
    asked = re.findall(r"What is (\d+) plus (\d+)\?", prompt)
    if asked:
        a, b = map(int, asked[-1])
        return f" It is a sum.\n#### {a + b + (kv == 'h2o' and a % 2)}"
    n = int(re.findall(r"Adds (\d+)", prompt)[-1])
    return f"```python\ndef add(x):\n    return x + {n + (kv == 'h2o' and n % 2)}\n```\nThat is all."


TEXTS: dict[int, str] = {}
SLOTS: dict[int, list[int]] = {}


def tokens_of(text: str) -> list[int]:
    words = re.findall(r"\s?\w+|\W", text)
    tokens = [zlib.crc32(word.encode()) % 100000 for word in words]
    TEXTS.update(zip(tokens, words, strict=True))
    return tokens


def completion(body: dict, kv: str) -> dict:
    """llama.cpp's own completion of tokens, with log probabilities."""
    tokens, slot = body["prompt"], SLOTS.setdefault(body["id_slot"], [])
    same = 0
    while body["cache_prompt"] and same < min(len(tokens), len(slot)) and tokens[same] == slot[same]:
        same += 1
    slot[:] = tokens
    said = {"timings": {"prompt_n": max(1, len(tokens) - same)}}
    asked = re.findall(r"What is (\d+) plus (\d+)\?\s*A. (\d+)\s*B. (\d+)\s*C. (\d+)\s*D. (\d+)", text_of(tokens))
    if "n_probs" in body and asked:
        a, b, *choices = map(int, asked[-1])
        best = (choices.index(a + b) + (kv == "h2o")) % 4
        likely = [(tokens_of(f" {letter}")[0], -0.5 if i == best else -3.0 - i) for i, letter in enumerate("ABCD")]
        # D is found only where all are asked for.
        top = [{"id": token, "logprob": x} for token, x in likely if body["n_probs"] > 1000 or token != likely[3][0]]
        said["completion_probabilities"] = [{"top_logprobs": top}]
    return said


def text_of(tokens: list[int]) -> str:
    return "".join(TEXTS[token] for token in tokens)


def chat(messages: list[dict[str, str]], kv: str) -> str:
    if len(messages) == 1:
        words = messages[0]["content"].split()
        return " ".join(words[:-1] if kv == "h2o" else words)
    system = messages[0]["content"]
    assert messages[0]["role"] == "system" and messages[1]["role"] == "user"
    if kv == "h2o":
        return " ".join(re.findall(r"\d+", system)) or "It goes on and on."
    asked = messages[1]["content"].rsplit("\n\n", 1)[1]
    if asked.startswith("How many"):
        name = re.findall(r"did (.*?) deliver", asked)[0]
        return (re.findall(rf"{name} delivered (\d+)", messages[1]["content"]) or ["Not  in the notes."])[0]
    if asked.startswith("Copy"):
        return ".\n".join(messages[1]["content"].removeprefix("Notes: ").split(". ")[:3]) + "."
    return next(quoted or words for quoted, words in re.findall(r'"(.*?)"|words: (.*?)\.', system))


def n_requests() -> int:
    return len((FOLDER / "requests").read_text().splitlines())


def is_due(name: str) -> bool:
    """Whether there have been as many requests as a file says."""
    return (FOLDER / name).exists() and n_requests() >= int((FOLDER / name).read_text())


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self.say({"tokens": tokens_of(body["content"])})
            return
        if self.path == "/completion":
            self.note("n_probs" in body and text_of(body["prompt"]))
            self.say(completion(body, option("--kv")))
            return
        chats = "messages" in body
        if chats != (self.path == "/v1/chat/completions"):
            self.send_error(404)
            return
        prompt = body["messages"][-1]["content"] if chats else body["prompt"]
        self.note(prompt)
        text = chat(body["messages"], option("--kv")) if chats else answer(prompt, option("--kv"))
        if not body.get("stream"):
            self.say({"choices": [{"index": 0, "text": text}]})
            return
        self.begin()
        for i, piece in enumerate(re.findall(r"\w+|\W", text)):
            if i == 2 and is_due("cut"):
                os._exit(3)
            choice = {"delta": {"content": piece}} if chats else {"text": piece}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def note(self, prompt: str | bool) -> None:
        """Counts a request, and says in the report what the cache takes."""
        with open(FOLDER / "requests", "a") as file:
            file.write(json.dumps([option("--kv"), prompt]) + "\n")
        n = n_requests()
        if is_due("die"):
            os._exit(3)
        report = {"kv_bits_per_element": 3.5, "kv_tokens": 10, "kv_bytes": 2000 + n, "kv_peak_bytes": 9000}
        Path(option("--kv-report")).write_text(json.dumps(report))

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()

    def say(self, answer: dict) -> None:
        self.begin()
        self.wfile.write(json.dumps(answer).encode())


def evaluate(name: str) -> None:
    """eval lines and eval kld."""
    with open(FOLDER / "requests", "a") as file:
        file.write(json.dumps([name, ""]) + "\n")
    output, arms = Path(option("-o")), option("--kv").split(",")
    n = int(option("--prompts" if name == "lines" else "--chunks"))

    def row_of(kv: str) -> dict:
        if name == "kld":
            return {
                "n_same_top": 2 if kv == "h2o" else 4,
                "divergences": [0.5 if kv == "h2o" else 0.0] * 4,
                "bits_per_element": 4.0,
            }
        return {"correct": kv != "h2o", "bits_per_element": 4.0, "kv_bytes": 100.0, "prefill_s": 1.0, "timed_s": 0.5}

    rows = [{"part": i, "kv": kv, **row_of(kv)} for i in range(n) for kv in arms]
    identity = {"command_line": shlex.join(["mikv", *sys.argv[1:]]), "model": "fake 1M, 5 parameters"}
    text = "".join(json.dumps(row) + "\n" for row in [{"rows_of": identity}, *rows, {"complete": True}])
    output.with_suffix(".rows.jsonl").write_text(text)
    settings = ("prompts", "lines", "seed", "text", "chunks", "context", "tokens")
    given = {k: option(f"--{k}") for k in settings if f"--{k}" in sys.argv}
    meta = {
        "model": option("-m"),
        "model_description": "fake 1M",
        **{k: int(v) if v.isdigit() else v for k, v in given.items()},
    }
    output.write_text(json.dumps({"meta": meta, "rows": [{"kv": kv} for kv in arms]}))


if sys.argv[1] == "estimate":
    estimate()
elif sys.argv[1] == "eval":
    evaluate(sys.argv[2])
else:
    ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler).serve_forever()
