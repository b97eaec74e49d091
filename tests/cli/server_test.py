"""mikv server on a small real model: two requests at once, slots saved and restored, reports, and how it ends.

Loopback only. Nothing here depends on how fast the machine is: waits are bounded by TIMEOUT, and end when what they wait
for has happened."""

import concurrent.futures
import glob
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
import unittest

from mikv_process import BINARY, THREADS, Case, environment, long

TIMEOUT = 240
# Long enough to be compressed (256 tokens), and of one mind about what follows.
PROMPTS = [", ".join(map(str, range(1, 121))) + ",", ", ".join(map(str, range(2, 240, 2))) + ","]
FOLLOWS = [" 121, 122,", " 240, 242,"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A running `mikv server`; ends with the test."""

    def __init__(self, case, kv, *arguments, models=None):
        self.folder = case.path("slots-" + kv)
        os.mkdir(self.folder)
        for _ in range(3):  # somebody else may have taken the port
            self.port = free_port()
            self.log = open(case.path(f"server-{self.port}.log"), "w+")
            case.addCleanup(self.log.close)
            self.process = subprocess.Popen(
                [BINARY, "server", *(["--models-dir", models] if models else ["-m", case.model()]), "--kv", kv, "-c", "2048", "-np", "2", "-t", THREADS, "--host", "127.0.0.1",
                 "--port", str(self.port), "--slot-save-path", self.folder + os.sep, "--offline", *arguments],
                stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment())
            case.addCleanup(self.kill)
            if self.wait_until_healthy():
                return
        case.fail("mikv server did not start:\n" + self.output())

    def wait_until_healthy(self):
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.request("GET", "/health")[0] == 200:
                    return True
            except OSError:
                pass  # not listening yet
            time.sleep(0.1)
        self.kill()
        return False

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def complete(self, prompt, slot, **options):
        status, answer = self.request("POST", "/completion", {"prompt": prompt, "id_slot": slot, "n_predict": 12, "temperature": 0,
                                                              "cache_prompt": False, **options})
        if status != 200:
            raise AssertionError(f"/completion: {status} {answer}")
        return answer

    def slot(self, slot, action, **body):
        status, answer = self.request("POST", f"/slots/{slot}?action={action}", body)
        return status, answer

    def output(self):
        self.log.flush()
        self.log.seek(0)
        return self.log.read()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def interrupt(self):
        """Exit code after SIGINT."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=TIMEOUT)


class ServerTest(Case):
    @long
    def test_long_embeddings_are_llama_cpps(self):
        texts = ["one two three", PROMPTS[0][:200], "a", "The last token of a text says what it is."]
        vectors = {}
        for kv in ("llama:f16", "mikv"):
            server = Server(self, kv, "--embeddings", "--pooling", "last")
            def embed(inputs):
                status, answer = server.request("POST", "/v1/embeddings", {"input": inputs})
                self.assertEqual(status, 200, answer)
                return [row["embedding"] for row in answer["data"]]
            vectors[kv] = [embed([text])[0] for text in texts] + embed(texts)
            self.assertGreaterEqual(server.request("POST", "/v1/embeddings", {"input": ["one two " * 1500]})[0], 400)  # too long
            self.assertEqual(embed(texts[:1]), vectors[kv][:1])
        for stock, ours in zip(vectors["llama:f16"], vectors["mikv"]):
            self.assertGreater(sum(a * b for a, b in zip(stock, ours)), 0.999)  # they have length 1

    def test_two_at_once_and_again(self):
        server = Server(self, "mikv")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            at_once = list(pool.map(server.complete, PROMPTS, (0, 1)))
        for answer, follows, slot in zip(at_once, FOLLOWS, (0, 1)):
            self.assertTrue(answer["content"].startswith(follows), answer["content"])
            self.assertEqual(answer["id_slot"], slot)
        # By itself, twice: the same batches, and so the same text.
        alone = [server.complete(PROMPTS[0], 0)["content"] for _ in range(2)]
        self.assertEqual(alone[0], alone[1])
        self.assertTrue(alone[0].startswith(FOLLOWS[0]), alone[0])
        self.assertEqual(server.interrupt(), 0, server.output())

    def test_slots_are_saved_and_restored(self):
        sizes = {}
        for kv in ("mikv", "full"):
            with self.subTest(kv=kv):
                server = Server(self, kv)
                server.complete(PROMPTS[0], 0, n_predict=2, cache_prompt=True)
                status, saved = server.slot(0, "save", filename="slot.bin")
                self.assertEqual(status, 200, saved)
                sizes[kv] = os.path.getsize(os.path.join(server.folder, "slot.bin"))
                self.assertEqual(saved["n_written"], sizes[kv])
                more = PROMPTS[0] + FOLLOWS[0]
                expected = server.complete(more, 0, cache_prompt=True)["content"]

                self.assertEqual(server.slot(0, "erase")[0], 200)
                status, restored = server.slot(0, "restore", filename="slot.bin")
                self.assertEqual(status, 200, restored)
                self.assertEqual(restored["n_restored"], saved["n_saved"])
                answer = server.complete(more, 0, cache_prompt=True)
                self.assertEqual(answer["content"], expected)
                self.assertGreater(answer["timings"]["cache_n"], 250, "the prompt was read again")

                # Damaged, it is refused, and the server goes on.
                path = os.path.join(server.folder, "slot.bin")
                with open(path, "r+b") as file:
                    file.seek(sizes[kv] // 2)
                    byte = file.read(1)[0]
                    file.seek(sizes[kv] // 2)
                    file.write(bytes([byte ^ 0x40]))
                status, answer = server.slot(0, "restore", filename="slot.bin")
                self.assertGreaterEqual(status, 400, answer)
                self.assertTrue(server.complete("one two three", 1)["content"])
                self.assertEqual(server.interrupt(), 0, server.output())
        self.assertLess(sizes["mikv"], sizes["full"] / 3)

    def wait_for_report(self, path, ready):
        end = time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            try:
                with open(path) as file:
                    text = file.read()
                if ready(text):
                    return text
            except FileNotFoundError:
                pass
            time.sleep(0.2)
        self.fail(f"{path} never said what it should")

    def test_report_for_prometheus(self):
        path = self.path("kv.prom")
        server = Server(self, "mikv", "--kv-report", path)
        server.complete("one two three", 0)
        self.wait_for_report(path, lambda text: "mikv_kv_steps_total" in text)
        self.assertEqual(server.interrupt(), 0, server.output())
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o644)  # a collector may be another user
        with open(path) as file:
            figures = self.parse_prometheus(file.read())
        self.assertGreater(figures["mikv_kv_steps_total"][0], 2)
        for name, (value, kind) in figures.items():
            self.assertRegex(name, r"^mikv_kv_")
            self.assertEqual(kind, "counter" if name.endswith("_total") else "gauge", name)
            self.assertGreaterEqual(value, 0, name)

    def test_says_what_it_runs(self):
        server = Server(self, "mikv", "--kv-budget", "60MiB")
        server.complete(PROMPTS[0], 0)
        self.assertEqual(server.interrupt(), 0, server.output())
        lines = [line for line in server.output().splitlines() if line.startswith("mikv: KV cache")]
        self.assertEqual(len(lines), 1, server.output())
        match = re.fullmatch(r"mikv: KV cache mikv: (\d+\.\d) bits per element, (.+ MiB) for 2,048 tokens \(f16 (.+ MiB)\), budget 60.0 MiB", lines[0])
        self.assertTrue(match, lines[0])
        self.assertTrue(3.0 < float(match[1]) < 4.5, lines[0])

    def test_report_of_what_steps_do_not_tell(self):
        path = self.path("kv.json")
        server = Server(self, "mikv", "-c", "6000", "--kv-budget", "4MiB", "--kv-report", path)
        figures = lambda ready: json.loads(self.wait_for_report(path, lambda text: ready(json.loads(text))))
        server.complete(PROMPTS[0], 0, cache_prompt=True)
        held = figures(lambda f: f["kv_tokens"] > 250)
        self.assertEqual(held["kv_refused_total"], 0)

        # A request is one, however often the server tries it again with less.
        too_long = ", ".join(map(str, range(1, 500)))  # some 2,000 tokens
        for n in (1, 2):
            status, _ = server.request("POST", "/completion", {"prompt": too_long, "id_slot": 1, "n_predict": 4})
            self.assertEqual(status, 500)
            refused = figures(lambda f: f["kv_refused_total"] > n - 1)
            self.assertEqual(refused["kv_refused_total"], n)
        self.assertLessEqual(refused["kv_peak_bytes"], 4 << 20)

        self.assertEqual(server.slot(0, "save", filename="slot.bin")[0], 200)
        for slot in (0, 1):
            server.slot(slot, "erase")
        figures(lambda f: f["kv_bytes"] == 0 and f["kv_tokens"] == 0)
        self.assertEqual(server.slot(1, "restore", filename="slot.bin")[0], 200)
        restored = figures(lambda f: f["kv_tokens"] > 250)
        for of in (held, refused, restored):
            self.assertLessEqual(of["kv_bytes"], of["kv_peak_bytes"])
        self.assertEqual(server.interrupt(), 0, server.output())

    def test_one_cache_after_each_sleep(self):
        """A server that was idle gives weights and cache back; the next request makes them anew."""
        path = self.path("kv.json")
        server = Server(self, "mikv", "--sleep-idle-seconds", "1", "--kv-budget", "30MiB", "--kv-report", path)
        held, n_steps = [], 0  # the report of the last context stays while the server sleeps
        for _ in range(3):
            self.assertEqual(server.complete(PROMPTS[0], 0)["content"][: len(FOLLOWS[0])], FOLLOWS[0])
            more = lambda text: json.loads(text)["kv_steps_total"] >= n_steps + 12 and json.loads(text)["kv_lo_tokens"] > 0
            figures = json.loads(self.wait_for_report(path, more))
            self.assertEqual((figures["kv_contexts"], figures["kv_budget_bytes"]), (1, 30 << 20))
            held.append(figures["kv_bytes"])
            n_steps = figures["kv_steps_total"]
            end = time.monotonic() + TIMEOUT
            while not server.request("GET", "/props")[1]["is_sleeping"] and time.monotonic() < end:
                time.sleep(0.2)
            self.assertTrue(server.request("GET", "/props")[1]["is_sleeping"])
        self.assertEqual(held, held[:1] * 3)
        self.assertEqual(server.interrupt(), 0, server.output())

    def test_router_hands_on(self):
        models = self.path("models")
        os.mkdir(models)
        for name in ("a", "b"):
            os.symlink(self.model(), os.path.join(models, name + ".gguf"))
        path = self.path("kv.json")
        server = Server(self, "mikv", "--kv-budget", "30MiB", "--kv-report", path, models=models)
        for name in ("a", "b"):
            status, answer = server.request("POST", "/v1/completions", {"model": name, "prompt": "one two three", "max_tokens": 4})
            self.assertEqual(status, 200, answer)
        end = time.monotonic() + TIMEOUT
        while len(reports := sorted(glob.glob(self.path("kv*.json")))) < 2 and time.monotonic() < end:
            time.sleep(0.2)
        self.assertEqual(len(reports), 2, server.output())
        processes = set()
        for report in reports:
            with open(report) as file:
                figures = json.load(file)
            self.assertEqual(figures["kv_contexts"], 1)
            self.assertEqual(figures["kv_budget_bytes"], 30 << 20)
            processes.add(figures["process"])
            self.assertIn(os.path.basename(report), ("kv.json", f"kv.{figures['process']}.json"))
        self.assertEqual(len(processes), 2)
        self.assertNotIn(server.process.pid, processes)
        server.interrupt()

    def test_report_as_json(self):
        path = self.path("kv.json")
        server = Server(self, "mikv", "--kv-report", path)
        server.complete(PROMPTS[0], 0)
        compressed = lambda text: json.loads(text)["kv_lo_tokens"] > 0
        report = json.loads(self.wait_for_report(path, compressed))
        self.assertEqual(report["kv_contexts"], 1)
        self.assertLess(report["kv_bytes"], report["kv_f16_bytes"])
        self.assertGreaterEqual(report["kv_peak_bytes"], report["kv_bytes"])
        self.assertEqual(server.interrupt(), 0, server.output())

    def parse_prometheus(self, text):
        """Name -> value and type. Fails unless the text is in Prometheus' exposition format, version 0.0.4."""
        self.assertTrue(text.endswith("\n"))
        name = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
        helps, kinds, values = {}, {}, {}
        lines = text.splitlines()
        self.assertRegex(lines[0], r"^# mikv process \d+ process_started \d+$")  # a comment
        for line in lines[1:]:
            if match := re.fullmatch(rf"# HELP ({name}) (.+)", line):
                self.assertNotIn(match[1], helps)
                helps[match[1]] = match[2]
            elif match := re.fullmatch(rf"# TYPE ({name}) (counter|gauge)", line):
                self.assertNotIn(match[1], kinds)
                self.assertNotIn(match[1], values)  # a type comes before its sample
                kinds[match[1]] = match[2]
            else:
                match = re.fullmatch(rf"({name}) (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", line)
                self.assertTrue(match, line)
                self.assertNotIn(match[1], values)
                values[match[1]] = float(match[2])
        self.assertTrue(values)
        self.assertEqual(set(helps), set(values))
        self.assertEqual(set(kinds), set(values))
        return {name: (value, kinds[name]) for name, value in values.items()}


if __name__ == "__main__":
    unittest.main()
