"""Each command on good input: what it prints, what it writes, and how it ends when interrupted."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import time
import unittest
import xml.etree.ElementTree

import tiny_gguf
from mikv_process import BINARY, THREADS, Case, environment, long, mikv


class Help(Case):
    COMMANDS = [[], ["run"], ["eval"], ["eval", "lines"], ["eval", "kld"], ["bench"], ["bench", "attention"], ["bench", "decode"], ["bench", "prefill"], ["bench", "wait"], ["bench", "threads"], ["tune"], ["info"], ["estimate"],
                ["model"], ["model", "get"], ["model", "path"], ["model", "list"]]

    def test_every_command_has_help_with_an_example(self):
        for command in self.COMMANDS:
            with self.subTest(command=command):
                result = mikv(*command, "--help")
                self.assertSucceeded(result)
                self.assertIn("Example:\n  mikv" if command[:2] != ["model", "path"] else "Example:", result.stdout)

    def test_version(self):
        result = mikv("--version")
        self.assertSucceeded(result)
        self.assertRegex(result.stdout, r"^mikv \d+\.\d+\.\d+ \(\w+\+?\)\n$")


class Run(Case):
    def run_model(self, *arguments):
        return mikv("run", "-m", self.model(), "-t", THREADS, "--temp", 0, *arguments)

    def test_streams_an_answer_and_ends_with_its_figures(self):
        prompt = "Which of these numbers is a colour? " + ", ".join(map(str, range(100)))  # more than stay in f16
        result = self.run_model("-p", prompt, "-n", 12)
        self.assertSucceeded(result)
        self.assertTrue(result.stdout.strip())
        last = result.stderr.strip().splitlines()[-1]
        self.assertRegex(last, r"^mikv: 12 tokens at [\d.]+ tokens/s; prompt of \d+ at [\d.]+(, compressed in [\d.]+ s)?; KV [\d.]+ \wiB, \d+ % of f16 \([\d.]+ \wiB\)$")
        self.assertLess(len(last), 140)

    def test_details_only_where_asked_for(self):
        result = self.run_model("-p", "Which is a colour? " + ", ".join(map(str, range(100))), "-n", 2, "--verbose")
        self.assertSucceeded(result)
        self.assertRegex(result.stderr, r"mikv: [\d.]+ bits per element: .*hi .*lo .*; process peak")

    def test_says_when_nothing_is_compressed_yet(self):
        for kv, said in (("mikv", True), ("full", False), ("llama:f16", False)):
            result = self.run_model("-p", "Name a colour.", "-n", 4, "--kv", kv)
            self.assertSucceeded(result)
            self.assertEqual("nothing is compressed under 256 tokens" in result.stderr, said, result.stderr)

    def test_prompt_of_any_bytes(self):
        result = self.run_model("-f", self.file("p.txt", b"na\xefve \xf7\xbf\xbf\xbf \0 end"), "-n", 4)
        self.assertSucceeded(result)
        self.assertIn("not UTF-8 in line 1", result.stderr)
        self.assertSucceeded(self.run_model("-p", os.fsdecode(b"na\xefve"), "-n", 2))

    def test_context_longer_than_the_model_was_trained_for(self):
        result = self.run_model("-p", "Name a colour.", "-n", 2, "-c", 20000)
        self.assertSucceeded(result)
        self.assertIn("-c 20000 is more than the 8192 tokens", result.stderr)

    def test_interrupt_while_the_prompt_is_read(self):
        prompt = self.file("p.txt", "A colour is " + ", ".join(map(str, range(1300))))
        process = subprocess.Popen([BINARY, "run", "-m", self.model(), "-t", THREADS, "-c", "0", "-f", prompt],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        while b"reading the prompt" not in process.stderr.readline():
            self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, err)
        self.assertRegex(err.decode(), r"interrupted while the prompt was read: \d+ of \d+ tokens")

    def test_same_answer_twice_and_with_a_fixed_seed(self):
        for sampling in ([], ["--temp", 0.8, "--seed", 5]):
            arguments = ["run", "-m", self.model(), "-t", THREADS, "-p", "Tell me a story.", "-n", 16, *(sampling or ["--temp", 0])]
            self.assertEqual(mikv(*arguments).stdout, mikv(*arguments).stdout)

    def test_prompt_from_file_and_standard_input(self):
        prompt = "Name a colour."
        expected = self.run_model("-p", prompt, "-n", 8).stdout
        self.assertEqual(self.run_model("-f", self.file("p.txt", prompt), "-n", 8).stdout, expected)
        result = mikv("run", "-m", self.model(), "-t", THREADS, "--temp", 0, "-f", "-", "-n", 8, stdin=prompt)
        self.assertEqual(result.stdout, expected)
        result = mikv("run", "-m", self.model(), "-t", THREADS, "--temp", 0, "-n", 8, stdin=prompt)  # a pipe needs no flag
        self.assertEqual(result.stdout, expected)

    def test_full_context_keeps_the_answer_so_far(self):
        for kv in ("mikv", "full", "llama:q8_0"):
            with self.subTest(kv=kv):
                result = self.run_model("--raw", "-p", "One two three four", "-c", 12, "-n", 200, "--kv", kv)
                self.assertSucceeded(result)
                self.assertIn("context of 12 tokens is full", result.stderr)
                self.assertIn("-c", result.stderr)
                self.assertTrue(result.stdout.strip())

    def test_stock_types_and_specs_run(self):
        for kv in ("llama:q4_0", "llama:iq4_nl", "h2o", "rtn2", "mikv:prefill=streaming", "mikv-max"):
            with self.subTest(kv=kv):
                self.assertSucceeded(self.run_model("-p", "Name a colour.", "-n", 4, "--kv", kv))

    def test_interrupt_keeps_what_was_generated(self):
        process = subprocess.Popen([BINARY, "run", "-m", self.model(), "-t", THREADS, "--raw", "-p", "Once upon a time", "--temp", "1", "--seed", "1"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        process.stdout.read(1)  # it generates
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, err)
        self.assertIn(b"of f16", err)


class Report(Case):
    def report(self, *arguments):
        path = self.path("report.json")
        result = mikv(*arguments, "-o", path)
        self.assertSucceeded(result)
        self.stderr = result.stderr
        with open(path) as file:
            document = json.load(file)
        self.assertEqual(sorted(document), ["meta", "rows"])
        for key in ("command", "version", "commit", "model", "cpu", "threads", "seed"):
            self.assertIn(key, document["meta"])
        self.assertEqual(document["meta"]["command"], " ".join(arguments[:2]))
        for row in document["rows"]:  # the table shows every row
            self.assertIn(row["kv"], result.stdout)
        return document

    def assertKeys(self, row, keys):
        for key in keys.split():
            self.assertIn(key, row)

    def test_eval_lines(self):
        plot = self.path("plot.svg")
        kvs = ["full", "mikv", "h2o", "llama:f16", "llama:q8_0", "llama:q8_0:prefill=exact"]
        document = self.report("eval", "lines", "-m", self.model(), "-t", THREADS, "--lines", 4, "--prompts", 2, "--kv", ",".join(kvs), "--plot", plot)
        self.assertEqual([row["kv"] for row in document["rows"]], kvs)
        rows = {row["kv"]: row for row in document["rows"]}
        for row in rows.values():
            self.assertKeys(row, "kv score correct n bits_per_element kv_bytes prefill_tokens_per_s decode_tokens_per_s")
            self.assertEqual(row["n"], 2)
            self.assertAlmostEqual(row["score"], row["correct"] / row["n"])
            self.assertIsNone(row["decode_tokens_per_s"])  # answers of some digits time nothing
        self.assertEqual(rows["llama:f16"]["bits_per_element"], 16)
        for kv in ("llama:q8_0", "llama:q8_0:prefill=exact"):
            self.assertEqual(rows[kv]["bits_per_element"], 8.5)
        self.assertLess(rows["mikv"]["kv_bytes"], rows["full"]["kv_bytes"])
        # Bytes and bits per element tell of the same cache.
        for kv in ("full", "mikv", "h2o"):
            elements = rows["llama:f16"]["kv_bytes"] / 2
            self.assertAlmostEqual(rows[kv]["kv_bytes"] * 8 / elements / rows[kv]["bits_per_element"], 1, delta=0.01)
        root = xml.etree.ElementTree.parse(plot).getroot()
        texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        for kv in kvs:
            self.assertIn(kv, texts)

    def test_eval_lines_from_a_file(self):
        cases = [{"expected_number": 5, "prompt": "line a-b: REGISTER_CONTENT is <5>\nTell me what is the <REGISTER_CONTENT> in line a-b? I need the number."}] * 3
        path = self.file("cases.jsonl", "".join(json.dumps(case) + "\n" for case in cases))
        document = self.report("eval", "lines", "-m", self.model(), "-t", THREADS, "--file", path, "--prompts", 2, "--kv", "mikv:prefill=streaming")
        self.assertEqual(document["rows"][0]["n"], 2)
        self.assertIn(f"2 of the 3 prompts of {path}; --prompts 3 takes all", self.stderr)

    def test_eval_lines_times_long_answers(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        document = self.report("eval", "lines", "-m", self.path("tiny.gguf"), "--raw", "--no-prefix", "--lines", 1, "--prompts", 1, "-n", 80, "--kv", "full,mikv")
        for row in document["rows"]:
            self.assertGreater(row["decode_tokens_per_s"], 0)
        self.assertIn("full finds none either", self.stderr)  # random weights

    def test_names_of_any_bytes(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        folder = self.path(os.fsdecode(b"caf\xe9"))
        os.mkdir(folder)
        shutil.copy(self.path("tiny.gguf"), folder + "/tiny.gguf")
        with open(folder + "/text.txt", "wb") as file:
            file.write(b"One line, na\xefve.\n" * 100)
        for command in (["eval", "kld", "--text", folder + "/text.txt", "--context", 300, "--tokens", 4, "--chunks", 1, "--kv", "mikv", "--plot", folder + "/p.svg"],
                        ["eval", "lines", "--raw", "--lines", 1, "--prompts", 1, "--kv", "full,mikv", "--plot", folder + "/p.svg"],
                        ["tune", "--text", folder + "/text.txt", "--context", 300, "--tokens", 2, "--chunks", 1], ["info"]):
            with self.subTest(command=command):
                result = mikv(*command, "-m", folder + "/tiny.gguf", "-o", folder + "/out.json")
                self.assertSucceeded(result)
                with open(folder + "/out.json", encoding="utf-8") as file:
                    self.assertIn("caf\ufffd", json.load(file)["meta"]["command_line"])
                if "--plot" in command:
                    xml.etree.ElementTree.parse(folder + "/p.svg")

    def kld(self, text, *more, context=300, tokens=4, chunks=2, kv="rtn2,mikv"):
        return mikv("eval", "kld", "-m", self.path("tiny.gguf"), "-t", 1, "--text", text, "--context", context, "--tokens", tokens, "--chunks", chunks, "--kv", kv,
                    "-o", self.path("kld.json"), *more)

    def kept_rows(self):
        with open(self.path("kld.rows.jsonl")) as file:
            return [json.loads(line) for line in file]

    def test_each_chunk_begins_with_bos(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))  # wants BOS; a space is three tokens, and one is put before the text
        period = "".join(chr(97 + i * i % 23) for i in range(300 + 4 - 1 - 3))
        result = self.kld(self.file("text.txt", " ".join([period] * 3)), chunks=3)
        self.assertSucceeded(result)
        rows = {(row["part"], row["kv"]): row for row in self.kept_rows()[1:-1]}
        for kv in ("rtn2", "mikv"):
            self.assertGreater(min(rows[0, kv]["divergences"]), 0)
            for chunk in (1, 2):
                self.assertEqual(rows[chunk, kv]["divergences"], rows[0, kv]["divergences"])

    def test_a_text_that_the_model_writes(self):
        """Its own seed gives the same text, and divergences are told by position."""
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        text = self.file("text.txt", "".join(f"The {i}th sentence. " for i in range(40)))
        said = []
        for seed in (1, 1, 2):
            result = self.kld(text, "--generate", "--positions", "--seed", seed, "--plot", self.path("p.svg"), tokens=16, chunks=1)
            self.assertSucceeded(result)
            with open(self.path("kld.json")) as file:
                said.append(json.load(file)["rows"])
        self.assertEqual(said[0], said[1])
        self.assertNotEqual(said[0], said[2])
        self.assertEqual(len(said[0][0]["by_position"]), 16)
        self.assertAlmostEqual(sum(said[0][0]["by_position"]) / 16, said[0][0]["mean"], delta=1e-9)
        self.assertIn("4th / 2nd", result.stdout)
        with open(self.path("p.svg")) as file:
            self.assertIn("tokens after the prompt", file.read())
        self.assertRefused(self.kld(text, "--positions", tokens=15), "--positions", remedy="--tokens 16")

    def test_text_is_text(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        result = self.kld(self.file("text.txt", "</s>" * 10))  # a token a byte, no control tokens
        self.assertRefused(result, "has 43 tokens")

    @long
    def test_long_same_command_goes_on_where_it_stopped(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        text, kept = self.file("text.txt", "".join(f"The {i}th sentence. " for i in range(100))), self.path("kld.rows.jsonl")
        self.assertSucceeded(self.kld(text))
        with open(self.path("kld.json")) as file:
            whole = json.load(file)["rows"]
        with open(kept) as file:
            lines = file.readlines()
        self.assertEqual(len(lines), 1 + 4 + 1)
        stopped = lambda: self.file("kld.rows.jsonl", "".join(lines[:3]) + lines[3][:20])  # killed within a line
        stopped()
        result = self.kld(text)
        self.assertSucceeded(result)
        self.assertIn("resuming: 2 of 4 rows are there", result.stderr)
        with open(self.path("kld.json")) as file:
            self.assertEqual(json.load(file)["rows"], whole)
        self.assertEqual(self.kept_rows(), [json.loads(line) for line in lines])
        self.assertNotIn("resuming", self.kld(text).stderr)  # it had come to its end
        stopped()
        changed = self.kld(text, tokens=5)
        self.assertSucceeded(changed)
        self.assertNotIn("resuming", changed.stderr)
        self.assertIn("starting anew", changed.stderr)
        stopped()
        with open(text, "a") as file:
            file.write("another text")
        self.assertIn("starting anew", self.kld(text).stderr)
        self.file("kld.rows.jsonl", "something of the user's\n")
        self.assertRefused(self.kld(text), "kld.rows.jsonl", remedy="move it")
        with open(kept) as file:
            self.assertEqual(file.read(), "something of the user's\n")

    def test_eval_kld(self):
        text = self.file("text.txt", "".join(f"The {i}th sentence is about number {i * i % 97}.\n" for i in range(60)))
        document = self.report("eval", "kld", "-m", self.model(), "-t", THREADS, "--text", text, "--context", 300, "--tokens", 16, "--chunks", 1,
                               "--kv", "full,rtn8,rtn2,llama:f16")
        rows = {row["kv"]: row for row in document["rows"]}
        for row in rows.values():
            self.assertKeys(row, "kv bits_per_element mean median p99 p999 max same_top")
            self.assertTrue(all(math.isfinite(value) for value in row.values() if isinstance(value, float)))
            self.assertEqual(row["n"], 16)
        self.assertLess(rows["full"]["max"], 1e-9)  # the reference itself
        self.assertEqual(rows["full"]["same_top"], 1)
        self.assertLess(rows["rtn8"]["mean"], rows["rtn2"]["mean"])

    def test_balancers_from_a_file(self):
        text = self.file("text.txt", "".join(f"The {i}th sentence is about number {i * i % 97}.\n" for i in range(60)))
        balancers = self.path("model.balancers")
        result = mikv("calibrate", "-m", self.model(), "-t", THREADS, "--text", text, "--context", 300, "--chunks", 1, "-o", balancers)
        self.assertSucceeded(result)
        self.assertIn(f"wrote {balancers}, the balancers of 30 layers", result.stderr)
        fixed = f"mikv-paper:lo=int2,balancer={balancers}"
        document = self.report("eval", "kld", "-m", self.model(), "-t", THREADS, "--text", text, "--context", 300, "--tokens", 16, "--chunks", 1,
                               "--kv", f"mikv-paper:lo=int2,{fixed},mikv-paper:lo=int2,outlier=none")
        own, of_file, none = (row["mean"] for row in document["rows"])
        self.assertAlmostEqual(of_file, own, delta=1e-6)  # measured on the same prompt
        self.assertNotAlmostEqual(none, own, delta=1e-3)
        missing = mikv("run", "-m", self.model(), "-p", "Hello", "--kv", "mikv-paper:balancer=/no/such/file")
        self.assertRefused(missing, "/no/such/file", remedy="mikv calibrate")
        self.assertRefused(mikv("calibrate", "-m", self.model(), "--text", text, "-o", "/no/such/folder/x"), "/no/such/folder", remedy="-o")

    @long
    def test_long_tune_and_the_knobs_that_read_it(self):
        model = self.path("model.gguf")
        os.symlink(self.model(), model)
        text = self.file("text.txt", "".join(f"The {i}th sentence is about number {i * i % 97}.\n" for i in range(60)))
        run = lambda *knob: mikv("run", "-m", model, "-t", THREADS, "--temp", 0, "-p", "Name a colour.", "-n", 4, *knob)
        untuned = run("--kv-bits", 4)
        self.assertSucceeded(untuned)
        self.assertRegex(untuned.stderr, r"--kv-bits 4 gives --kv mikv:\S+: [\d.]+ bits per element, KL divergence [\d.]+ \(built-in table")

        result = mikv("tune", "-m", model, "-t", THREADS, "--text", text, "--context", 256, "--tokens", 8, "--chunks", 1)
        self.assertSucceeded(result)
        sidecar = model + ".mikv.json"
        self.assertIn(f"wrote {sidecar}; --kv-quality and --kv-bits pick from it for this model", result.stderr)
        with open(sidecar) as file:
            table = json.load(file)
        rows = sorted(table["rows"], key=lambda row: row["bits_per_element"])
        self.assertGreater(len(rows), 5)
        self.assertGreater(rows[0]["mean"], rows[-1]["mean"])
        # The smallest that is good enough, and the best that is small enough.
        wanted = rows[len(rows) // 2]["mean"]
        chosen = next(row for row in rows if row["mean"] <= wanted)
        result = run("--kv-quality", f"{wanted + 1e-9:.12f}")
        self.assertSucceeded(result)
        self.assertIn(chosen["kv"], result.stderr)
        self.assertIn(sidecar, result.stderr)
        budget = rows[3]["bits_per_element"] + 1e-6
        chosen = min((row for row in rows if row["bits_per_element"] <= budget), key=lambda row: row["mean"])
        self.assertIn(chosen["kv"], run("--kv-bits", budget).stderr)
        document = self.report("eval", "kld", "-m", model, "-t", THREADS, "--text", text, "--context", 64, "--tokens", 2, "--chunks", 1, "--kv", "rtn8", "--kv-bits", budget)
        self.assertEqual([row["kv"] for row in document["rows"]], ["rtn8", chosen["kv"]])

        self.assertRegex(run("--kv-bits", 20).stderr, re.escape(rows[-1]["kv"]) + ".*the largest that was measured")

        # A table elsewhere is not read by itself.
        other = self.path("other.json")
        os.rename(sidecar, other)
        self.assertIn("built-in table", run("--kv-bits", 4).stderr)
        self.assertIn(f"({other})", run("--kv-bits", 4, "--kv-table", other).stderr)
        self.assertRefused(run("--kv-table", other), "--kv-table", remedy="--kv-bits")
        self.assertRefused(run("--kv-bits", 4, "--kv-table", self.path("none")), "no tuning table", remedy="mikv tune")
        elsewhere = mikv("tune", "-m", model, "-t", THREADS, "--text", text, "--context", 64, "--tokens", 2, "--chunks", 1, "-o", self.path("new.json"))
        self.assertSucceeded(elsewhere)
        self.assertIn(f"with --kv-table {self.path('new.json')}, without that from the built-in table", elsewhere.stderr)

        self.assertRefused(run("--kv-bits", 0.5), "--kv-bits 0.5", remedy="ask for more")
        self.assertRefused(run("--kv-quality", 1e-6), "--kv-quality 1e-06", remedy="--kv full")
        for wrong in ("{", "[]", '{"meta": {"fingerprint": "another model"}, "rows": []}',
                      json.dumps({"meta": table["meta"], "rows": []}), json.dumps({"meta": table["meta"], "rows": [{"kv": "none", "bits_per_element": 1, "mean": 0}]}),
                      json.dumps({"meta": table["meta"], "rows": [{"kv": "mikv", "bits_per_element": "x", "mean": 0}]}), "x" * (2 << 20)):
            self.file("model.gguf.mikv.json", wrong)
            self.assertRefused(run("--kv-bits", 4), sidecar, remedy="mikv tune")

    def test_bench_decode(self):
        document = self.report("bench", "decode", "-m", self.model(), "-t", THREADS, "--depth", "0,288", "--steps", 2, "--repetitions", 5, "--kv", "full,mikv,llama:q4_0")
        self.assertEqual([(row["kv"], row["depth"]) for row in document["rows"]], [(kv, depth) for depth in (0, 288) for kv in ("full", "mikv", "llama:q4_0")])
        for row in document["rows"]:
            self.assertKeys(row, "kv depth tokens_per_s ratio_to_llama_f16 compression_s")
            self.assertGreater(row["ratio_to_llama_f16"], 0)
        compression = {row["kv"]: row["compression_s"] for row in document["rows"] if row["depth"] == 288}
        self.assertGreater(compression["mikv"], 10 * compression["full"])  # which compresses nothing

    def test_bench_prefill(self):
        plot = self.path("prefill.svg")
        document = self.report("bench", "prefill", "-m", self.model(), "-t", THREADS, "--depth", "0,64", "--new", 32, "--repetitions", 2, "--kv", "full,mikv,llama:f16", "--plot", plot)
        self.assertEqual([(row["kv"], row["depth"]) for row in document["rows"]], [(kv, depth) for depth in (0, 64) for kv in ("full", "mikv", "llama:f16")])
        for row in document["rows"]:
            self.assertGreater(row["tokens_per_s"], 0)
        with open(plot) as file:
            drawn = xml.etree.ElementTree.parse(file).getroot()
        svg = "{http://www.w3.org/2000/svg}"
        self.assertEqual(len(drawn.findall(svg + "polyline")), 3)
        self.assertEqual(len(drawn.findall(svg + "circle")), 6)

    def test_bench_wait(self):
        started = time.monotonic()
        document = self.report("bench", "wait", "-m", self.model(), "-t", THREADS, "--depth", 288, "--tokens", 8, "--repetitions", 2, "--kv", "mikv,llama:f16")
        elapsed = time.monotonic() - started
        self.assertEqual([(row["kv"], row["depth"]) for row in document["rows"]], [("mikv", 288), ("llama:f16", 288)])
        for row in document["rows"]:
            self.assertGreater(row["reading_s"], 0)
            self.assertGreater(row["wait_s"], row["reading_s"] + row["compression_s"])  # there are tokens to generate
        self.assertLess(2 * sum(row["wait_s_min"] for row in document["rows"]), elapsed)
        mikv_row, stock = document["rows"]
        self.assertGreater(mikv_row["compression_s"], 10 * stock["compression_s"])
        result = mikv("bench", "wait", "-m", self.model(), "--kv", "llama:q4_0:prefill=exact")
        self.assertEqual(result.returncode, 2)
        self.assertIn("name it without prefill=exact", result.stderr)

    def test_bench_threads(self):
        document = self.report("bench", "threads", "-t", "1,4", "--kv-heads", "1,2", "--tokens", 2048, "--head-dim", 64, "--layers", 2, "--repetitions", 3)
        self.assertEqual([(row["kv_heads"], row["threads"]) for row in document["rows"]], [(1, 1), (1, 4), (2, 1), (2, 4)])
        for first, more in zip(document["rows"][::2], document["rows"][1::2]):
            self.assertEqual(first["ratio_to_first"], 1)
            self.assertGreater(more["ratio_to_first"], 0)
        result = mikv("bench", "threads", "--kv", "llama:f16")
        self.assertEqual(result.returncode, 2)
        self.assertIn("leave llama:f16 out", result.stderr)

    def test_bench_attention_shapes(self):
        document = self.report("bench", "attention", "-t", "1,2", "--tokens", 64, "--head-dim", "64,128", "--group", "1,3", "--queries", 5, "--sinks", 1, "--layers", 1, "--repetitions", 5, "--kv", "mikv")
        self.assertEqual(document["meta"]["sinks"], 1)
        rows = [row for row in document["rows"] if row["kv"] == "mikv"]
        self.assertEqual({(row["threads"], row["head_dim"], row["group"]) for row in rows}, {(t, d, g) for t in (1, 2) for d in (64, 128) for g in (1, 3)})
        self.assertEqual(len(document["meta"]["rooflines"]), 2)

    def test_bench_attention_whole_steps_and_windows(self):
        common = ["bench", "attention", "-t", THREADS, "--head-dim", 64, "--layers", 1, "--repetitions", 5]
        steps = self.report(*common, "--tokens", 256, "--whole-steps", "--kv", "mikv")
        self.assertTrue(steps["meta"]["whole_steps"])
        window = self.report(*common, "--tokens", 512, "--queries", 16, "--window", 64, "--kv", "mikv,llama:f16")
        self.assertEqual(window["meta"]["window"], 64)
        self.assertEqual([row["kv"] for row in window["rows"]], ["mikv", "llama:f16"])  # answers are checked against each other first

    def test_bench_attention(self):
        document = self.report("bench", "attention", "-t", THREADS, "--tokens", "64,256", "--head-dim", 64, "--layers", 2, "--kv", "full,mikv,llama:f16,llama:q4_0")
        self.assertEqual(len(document["rows"]), 8)
        for row in document["rows"]:
            self.assertKeys(row, "kv n_tokens head_dim group threads ns_per_token_head ratio_to_llama_f16 roofline_share")
            self.assertGreater(row["ns_per_token_head"], 0)
            if row["kv"] == "llama:f16":
                self.assertEqual(row["ratio_to_llama_f16"], 1)

    def test_interrupted_evaluation_keeps_its_rows(self):
        path = self.path("report.json")
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        process = subprocess.Popen([BINARY, "eval", "lines", "-m", self.path("tiny.gguf"), "-t", THREADS, "--raw", "--no-prefix", "--lines", "1", "--prompts", "10000", "--kv", "full,mikv", "-o", path],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        kept = self.path("report.rows.jsonl")
        while not (os.path.exists(kept) and os.path.getsize(kept) > 600):
            self.assertIsNone(process.poll())
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, err)
        with open(path) as file:
            document = json.load(file)
        self.assertTrue(document["meta"]["interrupted"])
        self.assertEqual(len(document["rows"]), 2)
        self.assertIn(b"mikv", out)
        self.assertRegex(err.decode(), r"interrupted; \d+ of 20000 rows are in .*report.rows.jsonl, and the same command resumes")


class Target(Case):
    """MIKV_TARGET: each target that the machine has runs when it is forced, its answers checked by the command itself."""

    def test_forced_target_runs(self):
        targets = re.search(r"available: ([^;]*);", mikv("info").stdout).group(1).split(", ")
        self.assertIn("scalar", targets)
        for target in targets:
            path = self.path(target + ".json")
            result = mikv("bench", "attention", "-t", THREADS, "--tokens", 64, "--layers", 1, "--repetitions", 5, "--kv", "mikv", "-o", path, target=target)
            self.assertSucceeded(result)
            with open(path) as file:
                self.assertEqual(json.load(file)["meta"]["simd_target"], target)

    def test_unknown_target_is_refused(self):
        result = mikv("bench", "attention", "--tokens", 64, "--layers", 1, "--kv", "mikv", target="mmx")
        self.assertEqual(result.returncode, 2)
        self.assertIn("MIKV_TARGET", result.stderr)
        self.assertIn("scalar", result.stderr)


class Info(Case):
    def test_versions_targets_and_presets(self):
        result = mikv("info")
        self.assertSucceeded(result)
        for word in ("llama.cpp", "SIMD target", "mikv-paper", "keep=0.2"):
            self.assertIn(word, result.stdout)

    def test_bits_per_element_for_a_model(self):
        result = mikv("info", "-m", self.model())
        self.assertSucceeded(result)
        bits = {match[1]: float(match[2]) for match in re.finditer(r"^(\S+) +(\d+\.\d+) .*=", result.stdout, re.M)}
        self.assertLess(bits["mikv"], bits["mikv-paper"])
        self.assertLess(bits["mikv"], 5)

    def test_heads_that_some_presets_cannot_have(self):
        tiny_gguf.write_llama(self.path("short.gguf"), head_dim=16)
        result = mikv("info", "-m", self.path("short.gguf"))
        self.assertSucceeded(result)
        self.assertRegex(result.stdout, r"(?m)^kivi2 +- ")
        self.assertRegex(result.stdout, r"(?m)^rtn4 +\d")

    def test_model_without_attention(self):
        tiny_gguf.write_mamba(self.path("mamba.gguf"))
        result = mikv("info", "-m", self.path("mamba.gguf"))
        self.assertSucceeded(result)
        self.assertIn("nothing to store", result.stdout)
        self.assertIn("model          mamba (", result.stdout)  # as the user calls it


class Estimate(Case):
    KVS = ["full", "mikv-hq", "mikv", "mikv-max", "h2o", "rtn4"]

    def estimate(self, *arguments):
        result = mikv("estimate", "-m", self.model(), "--json", *arguments)
        self.assertSucceeded(result)
        return json.loads(result.stdout)

    def test_agrees_with_info(self):
        """Both fill caches with 4,096 tokens; `info` prints two decimals, and knows the model's layers."""
        info = mikv("info", "-m", self.model()).stdout
        layers, heads, dim = map(int, re.search(r"(\d+) layers, \d+ query heads on (\d+) KV heads, head_dim (\d+)", info).groups())
        bits = {match[1]: float(match[2]) for match in re.finditer(r"^(\S+) +(\d+\.\d+) .*=", info, re.M)}
        document = self.estimate("-c", 4096, "--kv", ",".join(self.KVS))
        self.assertEqual((document["meta"]["n_ctx"], document["meta"]["n_parallel"]), (4096, 1))
        self.assertEqual([row["kv"] for row in document["rows"]], self.KVS)
        for row in document["rows"]:
            with self.subTest(kv=row["kv"]):
                self.assertEqual(row["f16_bytes"], 2 * 2 * 4096 * layers * heads * dim)
                self.assertAlmostEqual(row["bits_per_element"], 16 * row["bytes"] / row["f16_bytes"], delta=0.001)
                # Random content that is not the same: bits between heads and the last reserve differ.
                self.assertAlmostEqual(row["bits_per_element"], bits[row["kv"]], delta=0.02 * bits[row["kv"]])
                self.assertGreaterEqual(row["peak_bytes"], row["bytes"])
                # A prompt is read in f16, whatever it becomes.
                self.assertGreaterEqual(row["peak_bytes"], row["f16_bytes"])
                self.assertLess(row["peak_bytes"], 1.1 * row["f16_bytes"])

    def test_longer_contexts_and_several_sequences(self):
        """Beyond 8,192 tokens the figures are a straight line, and prompts are read one after the other."""
        rows = {}
        for tokens, sequences in ((8192, 1), (65536, 1), (32768, 4)):
            document = self.estimate("-c", tokens, "--parallel", sequences, "--kv", "mikv,mikv:prefill=streaming")
            rows[tokens, sequences] = {row["kv"]: row for row in document["rows"]}
        for kv in ("mikv", "mikv:prefill=streaming"):
            one, long, four = (rows[key][kv] for key in ((8192, 1), (65536, 1), (32768, 4)))
            self.assertAlmostEqual(long["bytes"] / one["bytes"], 8, delta=0.2)
            self.assertAlmostEqual(four["bytes"] / one["bytes"], 4, delta=0.02)
            # While the last of four prompts is read the other three are compressed.
            self.assertAlmostEqual(four["peak_bytes"], 3 * one["bytes"] + one["peak_bytes"], delta=0.02 * four["peak_bytes"])
            self.assertAlmostEqual(four["peak_at_once_bytes"], 4 * one["peak_bytes"], delta=0.02 * four["peak_at_once_bytes"])
        self.assertLess(rows[65536, 1]["mikv:prefill=streaming"]["peak_bytes"], rows[65536, 1]["mikv"]["peak_bytes"] / 3)

    def test_prints_a_table_and_writes_json(self):
        path = self.path("estimate.json")
        result = mikv("estimate", "-m", self.model(), "-c", 1024, "-o", path)
        self.assertSucceeded(result)
        with open(path) as file:
            rows = json.load(file)["rows"]
        self.assertEqual([row["kv"] for row in rows], ["full", "mikv-hq", "mikv", "mikv-max"])
        for row in rows:
            self.assertRegex(result.stdout, rf"(?m)^{row['kv']} .* {row['bits_per_element']:.2f} ")

    def test_sizes_of_stock_caches(self):
        bits = {"llama:f16": 16, "llama:q8_0": 8.5, "llama:q4_0": 4.5, "llama:iq4_nl": 4.5, "llama:q5_1:prefill=exact": 6}
        for row in self.estimate("-c", 4096, "--parallel", 2, "--kv", ",".join(bits))["rows"]:
            self.assertAlmostEqual(row["bits_per_element"], bits[row["kv"]])
            self.assertEqual(row["bytes"], row["f16_bytes"] * bits[row["kv"]] / 16)
            self.assertEqual(row["peak_bytes"], row["bytes"])

    def test_interrupt_ends_it_at_once(self):
        for command in (["estimate", "-c", "1000000"], ["info"]):
            for delay in (0.5, 0.25, 0.1, 0.05):  # a fast machine may be done
                process = subprocess.Popen([BINARY, *command, "-m", self.model()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
                time.sleep(delay)
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)
                if process.returncode == 130:
                    break
            self.assertEqual(process.returncode, 130)
            self.assertLess(time.monotonic() - began, 2)

    def test_refuses_what_it_cannot_know(self):
        self.assertRefused(mikv("estimate", "-m", self.model(), "-c", 2, "--parallel", 4), "--ctx-size", remedy="one token at least")


if __name__ == "__main__":
    unittest.main()
