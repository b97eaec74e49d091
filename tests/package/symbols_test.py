"""What libmikv.so offers and what it asks for: its exports are the public headers', and it can neither print nor end the process."""
import os
import pathlib
import re
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
LIBRARY = os.environ.get("MIKV_LIBRARY", str(ROOT / "build/src/libmikv.so"))
NM = os.environ.get("MIKV_NM", "nm")
HEADERS = sorted((ROOT / "include/mikv").iterdir())

# Functions and streams that print, and functions that end the process. std::terminate() is not among them: every
# std::thread refers to it, for the case that it is forgotten while it runs.
FORBIDDEN = re.compile(
    r"_*(v?f?printf|v?dprintf|puts|fputs|putchar|fputc|putc|putw|fwrite|perror|psignal)(_chk|_unlocked)?"
    r"|stdout|stderr|_ZSt4(cout|cerr|clog)|_ZNSt8ios_base4InitC1Ev|v?syslog"
    r"|abort|_*exit|_Exit|quick_exit|raise|v?(err|warn)x?|error"
    r"|__assert(_fail|_perror_fail)?|_ZSt21__glibcxx_assert_fail.*")
# Through Highway, which is a library of its own: hwy::Abort() prints and calls abort().
FORBIDDEN_CXX = re.compile(r"hwy::(Abort|Warn)\(")


def symbols(option, *more):
    lines = subprocess.run([NM, "-D", option, *more, LIBRARY], check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted(line.split(maxsplit=2 if option == "--defined-only" else 1)[-1].split("@")[0] for line in lines)


def public_headers():
    """Their text without comments and macros."""
    text = "\n".join(header.read_text() for header in HEADERS)
    return re.sub(r"/\*.*?\*/|//[^\n]*|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", "", text, flags=re.S | re.M)


class Symbols(unittest.TestCase):
    def test_exports_what_the_public_headers_mark(self):
        marked = re.findall(r"\bMIKV_API\b([^;{]*?)(\w+)\s*[({;:]", public_headers())
        self.assertTrue(marked)
        exported = "\n".join(symbols("--defined-only", "-C"))
        for _, name in marked:
            with self.subTest(name=name):
                self.assertRegex(exported, rf"\b{name}\b")

    def test_exports_nothing_else(self):
        declared = set(re.findall(r"\w+", public_headers()))
        exported = symbols("--defined-only", "-C")
        self.assertTrue(exported)
        for symbol in exported:
            with self.subTest(symbol=symbol):
                name = re.sub(r"^(typeinfo( name)?|vtable) for ", "", symbol)
                name = re.sub(r"\boperator[^\w\s(]+", "operator", name)  # an operator is declared by that word
                name = re.sub(r"\[abi:\w+\]", "", re.split(r"[(<]", name)[0])
                self.assertRegex(name, r"^(mikv_\w+|mikv::[\w:~]+)$")
                parts = name.split("::") if "::" in name else ["mikv", name]
                for part in parts[1:]:
                    self.assertIn(part.lstrip("~"), declared)

    def test_neither_prints_nor_ends_the_process(self):
        asked_for = symbols("--undefined-only")
        self.assertIn("memcpy", asked_for)  # else nm's output was not understood
        found = [symbol for symbol in asked_for if FORBIDDEN.fullmatch(symbol)]
        found += [symbol for symbol in symbols("--undefined-only", "-C") if FORBIDDEN_CXX.match(symbol)]
        self.assertEqual(found, [])

    def test_forbidden_names_are_recognised(self):
        for name in ("printf", "__printf_chk", "fprintf", "__fprintf_chk", "puts", "vfprintf", "abort", "exit", "_exit",
                     "__assert_fail", "stderr", "_ZSt4cout", "_ZSt4cerr", "fwrite", "perror"):
            self.assertTrue(FORBIDDEN.fullmatch(name), name)
        for name in ("snprintf", "__snprintf_chk", "memcpy", "write", "__cxa_atexit", "pthread_create"):
            self.assertFalse(FORBIDDEN.fullmatch(name), name)


if __name__ == "__main__":
    unittest.main()
