#!/usr/bin/env python3
"""A stand-in for the mikv command: estimate, server and eval lines, without a model.

It answers GSM8K's questions "What is A plus B?" and HumanEval's "adds N", wrongly for the cache `h2o` where N is odd. In a
chat it obeys the system prompt's quoted words, and tells all other numbers in it as `h2o`.
FAKE_MIKV names a folder. It counts requests in `requests` there. A file `die` ends the server at that many of them, `slow`
is the seconds of each, and `answers` has other answers by question.
"""

import json
import os
import re
import sys
import time
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
    asked = re.findall(r"What is (\d+) plus (\d+)\?", prompt)
    if asked:
        a, b = map(int, asked[-1])
        return f" It is a sum.\n#### {a + b + (kv == 'h2o' and a % 2)}"
    n = int(re.findall(r"Adds (\d+)", prompt)[-1])
    return f"```python\ndef add(x):\n    return x + {n + (kv == 'h2o' and n % 2)}\n```\nThat is all."


def chat(messages: list[dict[str, str]], kv: str) -> str:
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


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chats = "messages" in body
        if chats != (self.path == "/v1/chat/completions"):
            self.send_error(404)
            return
        prompt = body["messages"][-1]["content"] if chats else body["prompt"]
        with open(FOLDER / "requests", "a") as file:
            file.write(json.dumps([option("--kv"), prompt]) + "\n")
        n = len((FOLDER / "requests").read_text().splitlines())
        if (FOLDER / "die").exists() and n >= int((FOLDER / "die").read_text()):
            os._exit(3)
        text = chat(body["messages"], option("--kv")) if chats else answer(prompt, option("--kv"))
        report = {"kv_bits_per_element": 3.5, "kv_tokens": 10, "kv_bytes": 2000 + n, "kv_peak_bytes": 9000}
        Path(option("--kv-report")).write_text(json.dumps(report))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        if body.get("stream"):
            for piece in re.findall(r"\w+|\W", text):
                choice = {"delta": {"content": piece}} if chats else {"text": piece}
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
        else:
            self.wfile.write(json.dumps({"choices": [{"index": 0, "text": text}]}).encode())


def lines() -> None:
    with open(FOLDER / "requests", "a") as file:
        file.write('["lines", ""]\n')
    output, arms, n = Path(option("-o")), option("--kv").split(","), int(option("--prompts"))
    rows = [{"part": i, "kv": kv, "correct": kv != "h2o", "bits_per_element": 4.0, "kv_bytes": 100.0, "prefill_s": 1.0,
             "timed_s": 0.5} for i in range(n) for kv in arms]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in [{"rows_of": {}}, *rows, {"complete": True}])
    output.with_suffix(".rows.jsonl").write_text(text)
    meta = {"prompts": n, "lines": int(option("--lines")), "seed": int(option("--seed")), "model": option("-m")}
    output.write_text(json.dumps({"meta": meta, "rows": [{"kv": kv} for kv in arms]}))


if sys.argv[1] == "estimate":
    estimate()
elif sys.argv[1] == "eval":
    lines()
else:
    ThreadingHTTPServer(("127.0.0.1", int(option("--port"))), Handler).serve_forever()
