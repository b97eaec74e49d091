"""mikv preloaded: into llama.cpp's own program, and into programs that have nothing to do with it."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

PRELOAD = str(Path(os.environ["MIKV_BUILD"]) / "lib" / "libmikv-llama.so")
COMPLETION = str(Path(os.environ["MIKV_LLAMA_LIBRARIES"]) / "llama-completion")


def run(*command, **variables):
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300, stdin=subprocess.DEVNULL,
                          env={**os.environ, "OMP_WAIT_POLICY": "passive", "LD_PRELOAD": PRELOAD, **variables})


def complete(**variables):
    return run(COMPLETION, "-m", os.environ["MIKV_TEST_MODEL"], "-t", "1", "-c", "512", "-p", "one two", "-n", "2", "-no-cnv", **variables)


def said(result):
    return [line for line in result.stderr.splitlines() if line.startswith("mikv: ")]


class PreloadTest(unittest.TestCase):
    def test_other_programs_are_left_alone(self):
        for variables in ({"MIKV_KV": "nonsense"}, {"MIKV_KV": "mikv", "MIKV_KV_BUDGET": "nonsense"}, {"MIKV_KV_REPORT": "file"}):
            result = run("ls", "/", **variables)
            self.assertEqual((result.returncode, result.stderr), (0, ""))

    def test_says_that_it_is_on(self):
        result = complete(MIKV_KV="mikv-max")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual([line.split(":")[1] for line in said(result)], [" KV cache mikv-max"], result.stderr)

    def test_says_that_it_is_off(self):
        with tempfile.TemporaryDirectory() as folder:
            report = folder + "/report.json"
            result = complete(MIKV_KV_REPORT=report)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(len(said(result)), 1, result.stderr)
            for word in ("off", "MIKV_KV_REPORT", "MIKV_KV=mikv"):
                self.assertIn(word, said(result)[0])
            self.assertFalse(os.path.exists(report))
        self.assertEqual(said(complete()), [])

    def test_the_variable_at_fault_is_named(self):
        for variables, words in (({"MIKV_KV": "nonsense"}, ["MIKV_KV:", "nonsense"]),
                                 ({"MIKV_KV": "mikv", "MIKV_KV_BUDGET": "1,5GiB"}, ["MIKV_KV_BUDGET:", "1,5GiB"]),
                                 ({"MIKV_KV": "llama:q8_0"}, ["MIKV_KV=llama:f16", "-ctk q8_0"])):
            result = complete(**variables)
            self.assertEqual(result.returncode, 2)
            self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
            for word in words:
                self.assertIn(word, result.stderr)

    def test_cache_types_of_llama_cpp(self):
        result = complete(MIKV_KV="mikv", LLAMA_ARG_CACHE_TYPE_K="q8_0")
        self.assertNotEqual(result.returncode, 0)
        self.assertEqual(len(said(result)), 1, result.stderr)
        self.assertIn("LLAMA_ARG_CACHE_TYPE_K=q8_0", said(result)[0])


if __name__ == "__main__":
    unittest.main()
