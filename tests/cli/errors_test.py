"""Bad input: one line on stderr that names the cause and the remedy, exit code 2, nothing written."""

import os
import resource
import signal
import subprocess
import sys
import time
import unittest

import tiny_gguf
from mikv_process import BINARY, Case, environment, mikv


class CommandLine(Case):
    def test_unknown_command_flag_and_value(self):
        self.assertRefused(mikv("evil"), "evil", remedy="--help")
        self.assertRefused(mikv("eval", "lins"), "lins", remedy="mikv eval --help")
        self.assertRefused(mikv("eval", "lines", "--lnes", 3), "--lnes", remedy="mikv eval lines --help")
        self.assertRefused(mikv("eval", "lines", "--lines", 0), "--lines", "0 is out of range")
        self.assertRefused(mikv("eval", "lines", "--lines", "many"), "--lines", "many")
        self.assertRefused(mikv(), remedy="--help")

    def test_commands_of_the_python_package(self):
        python = self.file("python", "#!/bin/sh\nshift 2\nprintf '[%s]' \"$@\"\necho \"$MIKV_BINARY\"\nexit 7\n")
        os.chmod(python, 0o755)
        def run(*arguments, python=python):
            return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=60, env=environment() | {"MIKV_PYTHON": python, "MIKV_BINARY": "here"})
        for command, module in ((["eval", "suite"], "mikv.suite"), (["inspect"], "mikv.inspect"), (["report"], "mikv.report")):
            result = run(*command, "--limit", "a b", "--help")
            self.assertEqual(result.stdout, f"[{module}][mikv {' '.join(command)}][--limit][a b][--help]here\n")
            self.assertEqual(result.returncode, 7)
        self.assertRefused(run("inspect", python="/no/python"), "cannot run /no/python", remedy="MIKV_PYTHON")
        bare = self.file("bare", f"#!/bin/sh\nexec {sys.executable} -I -S \"$@\"\n")  # neither packages nor PYTHONPATH
        os.chmod(bare, 0o755)
        self.assertRefused(run("report", python=bare), "mikv report needs the Python package", remedy="MIKV_PYTHON")

    def test_spec_errors_come_before_the_model_is_touched(self):
        for command in (["run", "-p", "x"], ["eval", "lines"], ["bench", "decode"]):
            run = lambda kv: mikv(*command, "-m", "/no/such/model.gguf", "--kv", kv)
            with self.subTest(command=command):
                self.assertRefused(run("mikv:kep=0.2"), "kep", remedy="keep")
                self.assertRefused(run("mikv:keep=1.5"), "keep", "1.5")
                self.assertRefused(run("mikv:lo=int7"), "int7", remedy="int4")
                self.assertRefused(run("mikw"), "mikw", remedy="mikv")
                self.assertRefused(run("llama:q9:prefill=exact"), "q9", remedy="q8_0")
                self.assertRefused(run("llama:q3_0"), "q3_0", remedy="q4_0")

    def test_no_model_and_no_prompt(self):
        self.assertRefused(mikv("run", "-p", "x"), "no model", remedy="-m")
        self.assertRefused(mikv("run", "-m", "smollm2-135m"), "no prompt", remedy="-p")
        self.assertRefused(mikv("eval", "kld", "-m", "smollm2-135m"), "no text", remedy="--text")

    def test_hugging_face_without_a_repository(self):
        self.assertRefused(mikv("run", "--hf", "mikv-test/none", "-p", "x", timeout=120), "mikv-test/none", remedy="-m FILE")


class ModelFiles(Case):
    def refused(self, path, *words, **remedy):
        self.assertRefused(mikv("run", "-m", path, "-p", "x"), path, *words, **remedy)
        report = self.path("report.json")
        self.assertRefused(mikv("eval", "lines", "-m", path, "-o", report, "--prompts", 1), *words, **remedy)
        self.assertFalse(os.path.exists(report))

    def test_what_is_no_file_is_refused_at_once(self):
        os.mkfifo(self.path("pipe.gguf"))
        os.symlink(self.path("circle.gguf"), self.path("circle.gguf"))
        os.symlink(self.path("none.gguf"), self.path("dangling.gguf"))
        cases = ((self.path("pipe.gguf"), "not a file"), ("/dev/zero", "not a file"), (self.folder, "directory"), (self.path("circle.gguf"), "circle"),
                 (self.path("dangling.gguf"), "none.gguf"), (self.path("none.gguf"), "no model file"))
        for path, word in cases:
            for command in (["info"], ["estimate", "-c", 512], ["run", "-p", "x"], ["bench", "decode"], ["server"], ["cli"], ["perplexity"], ["bench-llama"]):
                with self.subTest(command=command, path=path):
                    self.assertRefused(mikv(*command, "-m", path, timeout=20), path, word, remedy="mikv model list")

    def test_parts_of_a_split_model(self):
        first, second = (self.file(f"x-0000{n}-of-00002.gguf", "GGUF") for n in (1, 2))
        self.assertRefused(mikv("info", "-m", second), "part 2 of a model in 2 files", remedy=first)
        os.remove(second)
        for command in (["info"], ["server"]):
            self.assertRefused(mikv(*command, "-m", first), f'"{second}" is missing', remedy="fetch it")

    def test_interrupt_while_an_input_is_awaited(self):
        os.mkfifo(self.path("pipe"))
        process = subprocess.Popen([BINARY, "run", "-m", "smollm2-135m", "-f", self.path("pipe")], stderr=subprocess.PIPE, env=environment())
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        self.assertEqual(process.returncode, 130)

    def test_names_that_are_nearly_right(self):
        for command in (["info"], ["run", "-p", "x"], ["server"], ["cli"]):
            for typed in ("smollm2", "smolm2-135m", "smollm2-135m.gguf"):
                self.assertRefused(mikv(*command, "-m", typed), typed, "did you mean smollm2-135m?", remedy="mikv model list")
            self.assertNotIn("did you mean", mikv(*command, "-m", "nope").stderr)

    def tiny(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        return self.path("tiny.gguf")

    def test_missing(self):
        self.refused(self.path("none.gguf"), "no model file", remedy="mikv model list")

    def test_folder(self):
        self.refused(self.folder, "directory")

    def test_not_a_gguf(self):
        self.refused(self.file("text.gguf", "Once upon a time"), "not a GGUF", remedy="convert")
        self.refused(self.file("empty.gguf", ""), "not a GGUF")
        self.refused(self.file("short.gguf", b"GG"), "not a GGUF")

    def test_truncated(self):
        with open(self.tiny(), "rb") as file:
            whole = file.read()
        self.refused(self.file("cut.gguf", whole[:-1000]), "truncated", f"{len(whole)} bytes", remedy="fetch the file again")
        for n_bytes in (4, 20, 1000):
            self.refused(self.file("head.gguf", whole[:n_bytes]), "damaged", remedy="fetch the file again")

    def test_truncated_real_model(self):
        with open(self.model(), "rb") as file:
            start = file.read(5_000_000)
        self.refused(self.file("cut.gguf", start), "truncated")

    def test_model_that_llama_cpp_refuses(self):
        tiny_gguf.write(self.path("odd.gguf"), [("general.architecture", tiny_gguf.STRING, "no-such-architecture")], [])
        self.refused(self.path("odd.gguf"), "no-such-architecture")

    def test_attention_that_is_not_supported(self):
        tiny_gguf.write_mamba(self.path("mamba.gguf"))
        for command in (["run", "-p", "x", "--raw"], ["eval", "lines", "--prompts", 1, "--raw"], ["bench", "decode", "--depth", 0]):
            with self.subTest(command=command):
                self.assertRefused(mikv(*command, "-m", self.path("mamba.gguf")), "recurrent")


class Inputs(Case):
    def test_prompt_longer_than_the_context(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        result = mikv("run", "-m", self.path("tiny.gguf"), "--raw", "-p", "a word " * 100, "-c", 64)
        self.assertRefused(result, "the context holds 64", remedy="-c")
        result = mikv("eval", "lines", "-m", self.path("tiny.gguf"), "--raw", "-c", 64)
        self.assertRefused(result, "the context holds 64", remedy="-c")

    def test_exact_prompt_of_a_stock_cache_is_for_eval(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        result = mikv("run", "-m", self.path("tiny.gguf"), "--raw", "-p", "a word", "--kv", "llama:f16:prefill=exact")
        self.assertRefused(result, "llama:f16:prefill=exact", remedy="only eval")

    def test_unreadable_prompt_file(self):
        self.assertRefused(mikv("run", "-m", "smollm2-135m", "-f", self.path("none.txt")), "none.txt", "No such file", remedy="check the path")
        self.assertRefused(mikv("run", "-m", "smollm2-135m", "-f", self.folder), "folder")
        if os.geteuid() != 0:  # root reads everything
            path = self.file("secret.txt", "x")
            os.chmod(path, 0)
            self.assertRefused(mikv("run", "-m", "smollm2-135m", "-f", path), "Permission denied")

    def test_unreadable_test_cases(self):
        lines = lambda path: mikv("eval", "lines", "-m", "smollm2-135m", "--file", path)
        self.assertRefused(lines(self.path("none.jsonl")), "none.jsonl", "No such file")
        self.assertRefused(lines(self.file("bad.jsonl", "{}\n")), "bad.jsonl line 1", remedy="expected_number")
        self.assertRefused(lines(self.file("bad2.jsonl", b"\xff\xfe\x00")), "bad2.jsonl line 1")
        self.assertRefused(lines(self.file("empty.jsonl", "")), "no test case")

    def test_text_that_is_missing_or_too_short(self):
        tiny_gguf.write_llama(self.path("tiny.gguf"))
        kld = lambda path: mikv("eval", "kld", "-m", self.path("tiny.gguf"), "--text", path)
        self.assertRefused(kld(self.path("none.txt")), "none.txt", "No such file")
        self.assertRefused(kld(self.file("short.txt", "too short")), "short.txt", "tokens", remedy="--chunks")

    def test_report_that_cannot_be_written(self):
        for flag in ("-o", "--plot"):
            result = mikv("eval", "lines", "-m", "/no/such/model", flag, self.path("none/report"))
            self.assertRefused(result, "none/report", "no folder", remedy="create it")

    def test_report_on_a_full_disk(self):
        def no_room():  # every write to a file fails, as on a full disk
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

        path = self.file("report.json", "kept")
        result = mikv("info", "-o", path, preexec_fn=no_room)
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertIn(path, result.stderr)
        self.assertIn("free some space", result.stderr)
        self.assertEqual(os.listdir(self.folder), ["report.json"])
        with open(path) as file:
            self.assertEqual(file.read(), "kept")


class LittleAddressSpace(Case):
    """What llama.cpp reserves for a context may be more than a process is allowed to; its own words name no number."""

    def test_how_much_was_wanted_is_said(self):
        limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        for tool, *arguments in (("run", "-n", 1), ("completion", "-n", 1, "-no-cnv"), ("bench-llama", "-p", 1, "-n", 0, "-d", 1048000)):
            context = [] if tool == "bench-llama" else ["-c", 1048576, "-p", "one"]
            with self.subTest(tool=tool):
                result = mikv(tool, "-m", self.model(), *context, *arguments, preexec_fn=limit)
                self.assertGreater(result.returncode, 0, result.stderr)
                self.assertRegex(result.stderr, r"mikv: no 22\.[0-9] GiB of address space for .*; use a smaller -c, or raise the limit .*ulimit -v")

    def test_llama_cpps_reason_is_passed_on(self):
        self.assertIn("n_ctx_seq == 0", mikv("run", "-m", self.model(), "-c", 2**32 - 1, "-p", "one").stderr)


if __name__ == "__main__":
    unittest.main()
