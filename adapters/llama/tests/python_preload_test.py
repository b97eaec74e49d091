"""llama-cpp-python, as it comes, with mikv preloaded: its text is that of `mikv`'s cache, and the cache is ours."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import unittest
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
BUILD = Path(os.environ["MIKV_BUILD"])
LLAMA_LIBRARIES = Path(os.environ["MIKV_LLAMA_LIBRARIES"])
PACKAGES = ["numpy==2.2.6", "typing-extensions==4.15.0", "diskcache==5.6.3", "jinja2==3.1.6"]

PROGRAM = """
import sys
from llama_cpp import Llama
llama = Llama(sys.argv[1], n_ctx=512, n_threads=2, verbose=False, logits_all=False)
prompt = "".join(f"{n}, " for n in range(1, 100)).rstrip()  # more than stay in f16 (kFirstTokens)
out = llama.create_completion(prompt, max_tokens=12, temperature=0.0)
print(out["choices"][0]["text"])
state = llama.save_state()
print(len(state.llama_state))
llama.load_state(state)
print(llama.create_completion(prompt, max_tokens=12, temperature=0.0)["choices"][0]["text"])
"""


class PythonPreloadTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = BUILD / "python-preload-test"
        cls.folder.mkdir(exist_ok=True)
        if not (cls.folder / "llama_cpp").exists():
            archive = subprocess.run([sys.executable, ROOT / "scripts" / "fetch_package.py", "get", "llama.cpp"],
                                     check=True, capture_output=True, text=True).stdout.strip()
            with tarfile.open(archive) as tar:
                for member in tar.getmembers():
                    parts = Path(member.name).parts
                    if len(parts) == 3 and parts[1] == "llama_cpp" and member.isfile():
                        member.name = "/".join(parts[1:])
                        tar.extract(member, cls.folder)
            os.remove(archive)
        cls.python = cls.folder / "venv" / "bin" / "python"
        if not cls.python.exists():
            venv.create(cls.folder / "venv", with_pip=True)
        subprocess.run([cls.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
                       check=True, capture_output=True)

    @classmethod
    def run_program(cls, **environment):
        return subprocess.run([cls.python, "-c", PROGRAM, os.environ["MIKV_TEST_MODEL"]], capture_output=True, text=True, timeout=300,
                              cwd=cls.folder, env={**os.environ, "PYTHONPATH": str(cls.folder), "LLAMA_CPP_LIB_PATH": str(LLAMA_LIBRARIES),
                                                   "OMP_WAIT_POLICY": "passive", **environment})

    def test_same_text_and_a_smaller_state(self):
        preload = str(BUILD / "lib" / "libmikv-llama.so")
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        stock = self.run_program()
        ours = self.run_program(LD_PRELOAD=preload, MIKV_KV="mikv", MIKV_KV_REPORT=str(report))
        self.assertEqual(stock.returncode, 0, stock.stderr)
        self.assertEqual(ours.returncode, 0, ours.stderr)
        text, size, again = stock.stdout.rstrip("\n").split("\n")
        our_text, our_size, our_again = ours.stdout.rstrip("\n").split("\n")
        self.assertEqual(our_text, text)
        self.assertEqual(our_again, our_text)
        self.assertLess(int(our_size), int(size) / 2)
        self.assertIn("mikv", json.loads(report.read_text())["spec"])

    def test_not_asked_for_it_does_nothing(self):
        run = self.run_program(LD_PRELOAD=str(BUILD / "lib" / "libmikv-llama.so"))
        self.assertEqual(run.returncode, 0, run.stderr)

    def test_a_bad_spec_is_one_line(self):
        run = self.run_program(LD_PRELOAD=str(BUILD / "lib" / "libmikv-llama.so"), MIKV_KV="nonsense")
        self.assertEqual(run.returncode, 2)
        self.assertEqual(run.stderr.count("\n"), 1)
        self.assertIn("nonsense", run.stderr)


if __name__ == "__main__":
    unittest.main()
