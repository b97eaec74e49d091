"""Running the built mikv as a user does. MIKV_BINARY names it; MIKV_TEST_MODEL a small model with a chat template."""

import os
import shutil
import subprocess
import tempfile
import unittest

BINARY = os.environ.get("MIKV_BINARY") or os.path.join(os.path.dirname(__file__), "../../build/bin/mikv")
# One thread: llama.cpp's threads wait for each other by spinning, which a busy machine makes very slow.
THREADS = os.environ.get("MIKV_TEST_THREADS", "1")


def long(test):
    """For tests of half a minute and more, whose names begin with test_long_: `make test-long` runs them."""
    return unittest.skipUnless(os.environ.get("MIKV_LONG"), "make test-long runs it")(test)


def test_model():
    """The small real model, or None: fetching it is the caller's business."""
    cache = os.environ.get("MIKV_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mikv")
    path = os.environ.get("MIKV_TEST_MODEL") or os.path.join(cache, "models", "smollm2-135m.gguf")
    return path if os.path.exists(path) else None


def environment():
    # A proxy or token of the user's must not decide a test.
    return {key: value for key, value in os.environ.items() if key not in ("MIKV_TARGET", "HF_TOKEN")}


def mikv(*arguments, timeout=300, stdin=None, target=None, **options):
    env = environment() | ({"MIKV_TARGET": target} if target else {})
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}  # a pipe of the caller's would be read
    return subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=timeout,
                          env=env, **given, **options)


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="mikv-test-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.folder, name)

    def file(self, name, content):
        with open(self.path(name), "wb" if isinstance(content, bytes) else "w") as file:
            file.write(content)
        return self.path(name)

    def model(self):
        path = test_model()
        if not path:
            self.skipTest("no model: set MIKV_TEST_MODEL, or `mikv model get smollm2-135m`")
        return path

    def assertSucceeded(self, result):
        self.assertEqual(result.returncode, 0, result.stderr)

    def assertRefused(self, result, *words, remedy=None):
        """Exit code 2, nothing on stdout, and one line on stderr that has the words and the remedy."""
        self.assertEqual(result.returncode, 2, result.stderr)
        self.assertEqual(result.stdout, "")
        lines = [line for line in result.stderr.splitlines() if line]
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("mikv: "), lines[0])
        for word in (*words, *([remedy] if remedy else [])):
            self.assertIn(word, lines[0])
