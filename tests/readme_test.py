"""README and architecture.md say what is: the C++ example is the one that is compiled, paths exist, presets are real."""
import pathlib
import re
import textwrap
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


class Readme(unittest.TestCase):
    def test_example_is_the_compiled_one(self):
        blocks = re.findall(r"```cpp\n(.*?)```", README, re.S)
        example = (ROOT / "examples/minimal.cpp").read_text()
        part = re.search(r"// \[readme\]\n(.*?) *// \[/readme\]", example, re.S).group(1)
        self.assertEqual(blocks, [textwrap.dedent(part)])

    def test_paths_exist(self):
        # "Where do I change" is a table of architecture.md.
        paths = re.findall(r"`((?:src|include|adapters|cli|docs|scripts|tests|examples|cmake)/[\w./*-]+)`", README + ARCHITECTURE)
        self.assertGreater(len(paths), 20)
        missing = [path for path in paths if not list(ROOT.glob(path.rstrip("/")))]
        self.assertEqual(missing, [])

    def test_presets_are_in_the_parser(self):
        sources = [ROOT / "src/spec/presets.cpp", *sorted((ROOT / "src/policy").glob("*.hpp"))]
        spec = "".join(path.read_text() for path in sources)
        for preset in ("full", "h2o", "rtn4", "mikv", "mikv-paper"):
            self.assertIn(f'"{preset}"', spec)
            self.assertIn(preset, README)


if __name__ == "__main__":
    unittest.main()
