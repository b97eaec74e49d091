"""Our options of llama.cpp's programs: what they choose, and one line, naming the option or variable, if they are wrong."""

import os
import pathlib
import re
import subprocess
import unittest

from mikv_process import BINARY, THREADS, Case, environment, long


class LlamaToolsTest(Case):
    def run_tool(self, tool, *arguments, model=None, **variables):
        return subprocess.run([BINARY, tool, "-m", model or self.model(), *arguments], capture_output=True, text=True, errors="replace",
                              timeout=300, stdin=subprocess.DEVNULL, env=environment() | variables)

    def complete(self, *arguments, **variables):
        return self.run_tool("completion", "-t", THREADS, "-c", "512", "-p", "one two", "-n", "2", "--temp", "0", "-no-cnv", *arguments, **variables)

    def lines(self, result):
        return [line for line in result.stderr.splitlines() if line.startswith("mikv: ")]

    def test_every_program_says_what_it_runs(self):
        text = self.file("text", "one two three four five. " * 200)
        for tool, *arguments in (("completion", "-c", "512", "-p", "one", "-n", "2", "-no-cnv"),
                                 ("perplexity", "-c", "256", "-b", "256", "-f", text, "--chunks", "1"),
                                 ("bench-llama", "-p", "8", "-n", "1", "-r", "1")):
            with self.subTest(tool=tool):
                result = self.run_tool(tool, "-t", THREADS, *arguments)
                self.assertSucceeded(result)
                lines = [line for line in self.lines(result) if "KV cache" in line]
                self.assertEqual(len(lines), 1, lines)
                self.assertRegex(lines[0], r"^mikv: KV cache mikv: \d+\.\d bits per element, .+ for [\d,]+ tokens \(f16 .+\)$")

    def test_perplexity_reads_what_is_compressed(self):
        docs = pathlib.Path(__file__).resolve().parents[2] / "docs"
        text = self.file("text", "".join((docs / name).read_text() for name in ("architecture.md", "embedding.md")))

        def measured(kv, context):
            result = self.run_tool("perplexity", "-t", THREADS, "-c", str(context), "-b", str(context), "-ub", "256", "-f", text, "--chunks", "1", "--kv", kv)
            self.assertSucceeded(result)
            estimate = re.search(r"PPL = (\d+\.\d+)", result.stdout + result.stderr)
            return float(estimate[1]), re.findall(r"mikv: (of what .*)", result.stderr)

        full, none = measured("full", 1536)
        ruined, said = measured("h2o:keep=0.02", 1536)
        self.assertGreater(ruined, 1.2 * full)
        self.assertEqual(none, [])
        self.assertRegex(said[0], r"^of what 1536 measured tokens attended to, [1-9]\d? % was compressed$")
        self.assertRegex(measured("h2o:keep=0.02", 512)[1][0], r" 0 % was compressed: this is the full cache's figure; ")

    @long
    def test_long_endings_that_share_a_beginning_score_as_in_llama_cpp(self):
        tasks = self.file("tasks", "".join(f"Counting: There are {a} birds on a wire and {b} more come. Now\n{right}\n" +
                                           "".join(f"there are {a + b + (k - right)} birds.\n" for k in range(4))
                                           for a, b, right in ((2, 3, 0), (4, 5, 1), (7, 2, 3))))
        def scores(kv):
            result = self.run_tool("perplexity", "-t", THREADS, "-f", tasks, "--hellaswag", "--hellaswag-tasks", "3", "--parallel", "8", "--no-warmup", "--kv", kv)
            self.assertSucceeded(result)
            return re.findall(r"^[1-3]\t.*$", result.stdout + result.stderr, re.MULTILINE)
        stock = scores("llama:f16")
        self.assertEqual(len(stock), 3)
        self.assertEqual(scores("full"), stock)
        self.assertEqual(scores("mikv"), stock)  # short prompts are not compressed

    def test_knobs(self):
        for arguments, variables, name in ((["--kv-bits", "3"], {}, "--kv-bits 3"), (["--kv-quality=0.01"], {}, "--kv-quality 0.01"),
                                           ([], {"MIKV_KV_BITS": "3"}, "--kv-bits 3")):
            with self.subTest(name=name, variables=variables):
                result = self.complete(*arguments, **variables)
                self.assertSucceeded(result)
                picked = re.match(rf"mikv: {re.escape(name)} gives --kv (\S+): ", self.lines(result)[0])
                self.assertTrue(picked, result.stderr)
                self.assertIn(f"KV cache {picked[1]}: ", self.lines(result)[1])
        # An option is nearer than a variable.
        self.assertIn("KV cache mikv-max:", self.lines(self.complete("--kv", "mikv-max", MIKV_KV_BITS="3"))[0])
        self.assertIn("--kv-bits 4 gives", self.lines(self.complete("--kv-bits", "4", MIKV_KV="mikv-max"))[0])
        self.assertRefused(self.complete("--kv-bits", "3", "--kv", "mikv"), "--kv-bits", "--kv", remedy="leave out one")
        self.assertRefused(self.complete("--kv-bits", "3", "--kv-quality", "1"), remedy="leave out one")
        self.assertRefused(self.complete("--kv-bits", "three"), "--kv-bits three", remedy="give a number")
        self.assertRefused(self.complete("--kv-bits", "1"), "--kv-bits 1", remedy="ask for more")

    def test_the_setting_at_fault_is_named(self):
        for arguments, variables, words in (
                (["--kv", "mikvv"], {}, ["--kv:", "did you mean 'mikv'"]), ([], {"MIKV_KV": "mikvv"}, ["MIKV_KV:", "did you mean 'mikv'"]),
                (["--kv-budget", "1,5GiB"], {}, ["--kv-budget:", "300MiB"]), ([], {"MIKV_KV_BUDGET": "1,5GiB"}, ["MIKV_KV_BUDGET:", "300MiB"]),
                (["--kv", "llama:q8_0"], {}, ["--kv llama:f16", "-ctk q8_0 -ctv q8_0"]), ([], {"MIKV_KV": "llama:q8_0"}, ["MIKV_KV=llama:f16"]),
                (["-ctk", "q8_0"], {}, ["-ctk q8_0", "--kv llama:f16"]), (["-ctkd", "q4_0"], {}, ["-ctkd q4_0", "--kv llama:f16"]),
                ([], {"LLAMA_ARG_CACHE_TYPE_K": "q8_0"}, ["LLAMA_ARG_CACHE_TYPE_K=q8_0", "--kv llama:f16"]),
                (["--kv", "llama:f16", "--kv-budget", "1GiB"], {}, ["--kv-budget", "--kv llama:f16"]),
                (["--kv", ""], {}, ["--kv is empty"]), (["--kv-budget"], {}, ["--kv-budget needs a value"])):
            with self.subTest(arguments=arguments, variables=variables):
                self.assertRefused(self.complete(*arguments, **variables), *words)
        self.assertRefused(self.run_tool("bench-llama", "-ctk", "f16,q8_0"), "-ctk f16,q8_0")
        self.assertSucceeded(self.complete("-ctk", "f16"))
        self.assertSucceeded(self.complete("--kv", "llama:f16", "-ctk", "q8_0"))

    def test_models_are_looked_up(self):
        for flag in ("-md", "--model-draft", "--spec-draft-model"):
            self.assertRefused(self.complete(flag, "no-such-model"), "no-such-model", flag, remedy="`mikv model list`")
        self.assertRefused(self.run_tool("completion", "-p", "one", model="no-such-model"), "no-such-model", remedy="`mikv model list`")

    @long
    def test_long_batch_sizes_that_are_0_or_crossed(self):
        """With a budget that presses, because its plan is by micro-batches. Texts are those of the plain size."""
        prompt = self.file("prompt", ", ".join(map(str, range(1, 150))) + ",")  # some 600 tokens
        def text(*arguments, kv="full", budget="16MiB"):
            result = self.run_tool("completion", "-t", THREADS, "-c", "1024", "-f", prompt, "-n", "6", "--temp", "0", "-no-cnv", "--no-display-prompt",
                                   "--kv", kv, "--kv-budget", budget, *arguments)
            self.assertSucceeded(result)
            return result.stdout
        plain = text("-ub", "512")
        self.assertIn("150", plain)
        for sizes in (["-ub", "0"], ["-ub", "0", "-b", "256"], ["-ub", "4096", "-b", "256"], ["-b", "33", "-ub", "7"]):
            with self.subTest(sizes=sizes):
                self.assertEqual(text(*sizes), plain)
                self.assertTrue(text(*sizes, kv="mikv", budget="4MiB").strip())
        result = self.complete("-b", "0")
        self.assertNotIn(result.returncode, range(-64, 1), result.stderr)  # no signal
        self.assertIn("-b 0", self.lines(result)[0])


if __name__ == "__main__":
    unittest.main()
