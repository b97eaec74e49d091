"""The documents hold together: links and decision records exist, tables are what the figures say, numbers and words have one form."""
import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = {".c", ".cc", ".cpp", ".h", ".hpp", ".inc"}
# What programs print, and names of the past, are in code; here only what people read as prose is checked.
PROSE_FOLDERS = ("docs/", "include/", "src/", "adapters/", "cli/")
LEADING_DOT = re.compile(r"(^|[ (|*])\.[0-9]")


def tracked() -> list[str]:
    try:
        names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):  # a tree without its repository
        names = [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and not path.is_relative_to(ROOT / "build")]
    return [name for name in names if (ROOT / name).is_file()]


def text_of(name: str) -> str:
    data = (ROOT / name).read_bytes()
    return "" if b"\0" in data or name.startswith("tests/fuzz/corpus/") else data.decode("utf-8", "replace")


FILES = tracked()
PAGES = {name: text_of(name) for name in FILES if name.endswith(".md")}
RECORDS = {path.name for path in (ROOT / "docs/adr").glob("[0-9]*.md")}


def without_code(page: str) -> str:
    """Blocks between fences become empty lines, so that line numbers stay."""
    return re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), page, flags=re.S | re.M)


def without_spans(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "``", text)


def anchors(page: str) -> set[str]:
    """As GitHub makes them of headings."""
    found, result = {}, set()
    for heading in re.findall(r"^#+ +(.*?) *$", without_code(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        result.add(f"{slug}-{count}" if count else slug)
    return result


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_spans(without_code(page)))


def comments(source: str) -> str:
    """Of C and C++: each line keeps its number and what a comment says on it."""
    lines = []
    inside = False
    for line in source.splitlines():
        plain = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line) if not inside else line
        start = re.search(r"//|/\*", plain)
        lines.append(plain if inside else plain[start.start():] if start else "")
        inside = (inside or bool(start and start[0] == "/*")) and "*/" not in plain
    return "\n".join(lines)


def prose() -> dict[str, str]:
    """Pages without code, and comments of sources."""
    texts = {name: without_spans(without_code(page)) for name, page in PAGES.items()}
    for name in FILES:
        if name.startswith(PROSE_FOLDERS) and pathlib.Path(name).suffix in SOURCES:
            texts[name] = comments(text_of(name))
    return texts


def places(texts: dict[str, str], pattern: re.Pattern) -> list[str]:
    return [f"{name}:{number}: {line.strip()[:100]}" for name, text in texts.items() for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


class Check(unittest.TestCase):
    maxDiff = None

    def assertNothing(self, findings: list[str]) -> None:
        self.assertEqual("\n".join(findings), "")


class Links(Check):
    def test_links_resolve(self):
        broken = []
        for name, page in PAGES.items():
            for link in links(page):
                if re.match(r"[a-z]+:", link):
                    continue
                path, _, anchor = link.partition("#")
                target = (ROOT / name).parent / path if path else ROOT / name
                if not target.resolve().exists():
                    broken.append(f"{name}: {link}: no such file")
                elif anchor and anchor not in anchors(target.read_text()):
                    broken.append(f"{name}: {link}: no such heading")
        self.assertNothing(broken)

    def test_a_page_of_the_docs_is_linked(self):
        linked = {((ROOT / name).parent / link.partition("#")[0]).resolve() for name, page in PAGES.items() for link in links(page) if not re.match(r"[a-z]+:", link)}
        pages = [name for name in PAGES if name.startswith("docs/")]
        self.assertNothing([name for name in pages if (ROOT / name).resolve() not in linked])

    def test_references_to_decision_records_name_files(self):
        bad = []
        for name in FILES:
            for number, line in enumerate(text_of(name).splitlines(), 1):
                for reference in re.findall(r"adr/([0-9]{4}[\w.-]*)", line):
                    if reference.rstrip(".") not in RECORDS:
                        bad.append(f"{name}:{number}: adr/{reference} is not a file of docs/adr")
        self.assertNothing(bad)

    def test_pages_that_comments_name_exist(self):
        texts = prose() | {name: text_of(name) for name in FILES if name.endswith((".py", ".sh", ".cmake", "CMakeLists.txt", "Makefile"))}
        bad = [f"{name}: {page}" for name, text in texts.items() if name not in PAGES for page in re.findall(r"(?<![/\w])docs/[\w/-]+\.(?:md|csv|svg)\b", text)
               if not (ROOT / page).exists()]
        self.assertNothing(bad)

    def test_references_in_pages_are_links(self):
        bad = places({name: re.sub(r"\]\([^)\s]+\)", "]()", without_code(page)) for name, page in PAGES.items()}, re.compile(r"adr/[0-9]{4}"))
        self.assertNothing(bad)


class Promises(Check):
    def test_tests_that_pages_name_exist(self):
        known = set()
        for name in FILES:
            if "tests/" in name and name.endswith(".cpp"):
                known |= set(re.findall(r"(?:TEST|TEST_F|TEST_P|RC_GTEST_PROP)\(\s*(\w+),\s*(\w+)", text_of(name)))
        suites = {suite for suite, _ in known}
        self.assertGreater(len(suites), 20)
        bad = []
        for page in ("docs/reliability.md", "docs/quality.md", "docs/performance.md", "docs/architecture.md", "adapters/llama/ASSUMPTIONS.md"):
            # `Suite.Test`, `Suite.Test/Parameters` or `Suite.*Pattern`
            for suite, test in re.findall(r"`([A-Z]\w+)\.([A-Z]\w+|\*)(?:/\*?\w+|\w*)?`", PAGES[page]):
                if suite not in suites or (test != "*" and (suite, test) not in known):
                    bad.append(f"{page}: {suite}.{test} is no test")
        self.assertNothing(bad)


class DecisionRecords(Check):
    def test_each_has_status_date_and_a_line_in_the_index(self):
        self.assertGreater(len(RECORDS), 15)
        index = (ROOT / "docs/adr/README.md").read_text()
        for name in sorted(RECORDS):
            text = (ROOT / "docs/adr" / name).read_text()
            self.assertRegex(text, r"(?m)^Status: (proposed|accepted|superseded|rejected)", name)
            self.assertRegex(text, r"(?m)^Date: [0-9]{4}-[0-9]{2}-[0-9]{2}$", name)
            self.assertEqual(bool(re.search(r"(?m)^Superseded by:", text)), "superseded" in text.split("Date:")[0], name)
            self.assertIn(f"]({name})", index)


class Form(Check):
    def test_readme_is_short(self):
        self.assertLess(len((ROOT / "README.md").read_text().splitlines()), 100)

    def test_numbers_have_a_digit_before_the_point(self):
        self.assertNothing(places(prose(), LEADING_DOT))

    def test_bits_are_per_element(self):
        self.assertNothing(places(prose(), re.compile(r"\bbits an element", re.I)))

    def test_the_checks_can_fail(self):
        self.assertTrue(LEADING_DOT.search("mean of .0041") and LEADING_DOT.search("| .5 |") and not LEADING_DOT.search("0.5, v1.2"))
        self.assertEqual(comments('int a = 1;  // x .5\nf("// not .5");').split("\n"), ["// x .5", ""])
        self.assertIn("what-happens-at-the-end-of-the-budget", anchors("### What happens at the end of the budget?\n"))
        self.assertEqual(links("see [a](b.md#c) and `[x](y)`"), ["b.md#c"])


class Tables(Check):
    def test_tables_are_what_the_figures_say(self):
        done = subprocess.run([sys.executable, str(ROOT / "scripts/make_tables.py"), "--check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_every_figure_has_a_unit_a_command_and_a_date(self):
        sys.path.insert(0, str(ROOT / "scripts"))
        import make_tables
        for name in ("headline", "performance", "reliability"):
            for row in make_tables.read(name):
                self.assertTrue(all(row[key] for key in ("what", "value", "unit", "machine", "command", "date")), row)

    def test_pictures_are_small(self):
        large = [f"{path.name}: {path.stat().st_size} bytes" for path in (ROOT / "docs").glob("*.svg") if path.stat().st_size >= 60_000]
        self.assertNothing(large)


if __name__ == "__main__":
    unittest.main()
