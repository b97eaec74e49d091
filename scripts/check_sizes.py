#!/usr/bin/env python3
"""Tells how long the longest class and the longest function are, and fails if one is too long to be read in one go.

Reads formatted C++ (make format) and counts braces; it needs no compiler. Lines count from the first one of the
declaration to the closing brace, comments and blank lines included.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("include", "src", "adapters", "cli", "examples", "python", "tests")
LIMITS = {"class": 120, "function": 70}

# Comments, strings and characters are blanked out, line breaks kept.
NOISE = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.S)
PREPROCESSOR = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.M)


def blank(match):
    return re.sub(r"[^\n]", " ", match.group())


def without_templates(text):
    """`template <class T> void f()` without its first two words: they would look like a class."""
    while (found := re.match(r"\s*template\s*<", text)):
        depth, end = 1, found.end()
        while depth and end < len(text):
            depth += {"<": 1, ">": -1}.get(text[end], 0)
            end += 1
        text = text[end:]
    return text


def kind_of(header, outer):
    header = without_templates(header)
    if re.search(r"\bnamespace\b|\bextern\b\s*$", header):
        return "namespace"
    if outer not in ("namespace", "class"):
        return "block"
    if re.match(r"\s*(?:typedef\s+)?enum\b", header):
        return "block"
    if re.match(r"[\s\w:,\[\]]*\b(?:class|struct|union)\b", header) and not re.search(r"\)\s*(?:const|noexcept|override|\s)*$", header):
        return "class"
    return "function" if ")" in header else "block"


def name_of(header, kind):
    header = re.sub(r"\[\[.*?\]\]|__attribute__\(\(.*?\)\)\)?", "", without_templates(header))
    if kind == "class":
        words = re.split(r"\s:\s|\bfinal\b", header)[0].split()
        return words[-1] if words else "?"
    if (test := re.match(r"\s*(?:TEST(?:_[FP])?|RC_GTEST_\w+)\s*\(\s*(\w+),\s*(\w+)", header)):
        return ".".join(test.groups())
    found = re.search(r"([\w:~]+|operator\S+?)\s*\(", header)
    return found.group(1) if found else "?"


def measure(text):
    """Yields (kind, name, first line, lines) of every class and function."""
    text = PREPROCESSOR.sub(blank, NOISE.sub(blank, text))
    stack, start = [], 0  # (kind, where its header begins, header)
    position = 0
    while position < len(text):
        character = text[position]
        outer = stack[-1][0] if stack else "namespace"
        if character == ";":
            start = position + 1
        elif character == "{":
            header = re.sub(r"^\s*(?:(?:public|private|protected)\s*:\s*)+", "", text[start:position])
            stack.append((kind_of(header, outer), position - len(header), header))
            start = position + 1
        elif character == "}" and stack:
            kind, begin, header = stack.pop()
            following = text[position + 1:].lstrip()[:1]
            if kind == "function" and following in (",", "{"):
                start = begin  # the braces of a member's initialiser: the function's body is still to come
            else:
                begin += len(text[begin:]) - len(text[begin:].lstrip())
                if kind in LIMITS:
                    first = text.count("\n", 0, begin) + 1
                    yield kind, name_of(header, kind), first, text.count("\n", 0, position) + 2 - first
                start = position + 1
        position += 1


def sources():
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.splitlines() if listed.returncode == 0 else \
        [str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return [ROOT / name for name in names if name.endswith((".h", ".hpp", ".c", ".cpp")) and (ROOT / name).is_file()]


def main():
    found = [(kind, lines, f"{path.name}:{name}", f"{path.relative_to(ROOT)}:{first}")
             for path in sources() for kind, name, first, lines in measure(path.read_text())]
    failed = False
    for kind, limit in LIMITS.items():
        ours = sorted((entry for entry in found if entry[0] == kind), key=lambda entry: -entry[1])
        if not ours:
            print(f"check_sizes: no {kind} found; the script does not understand the code any more", file=sys.stderr)
            return 2
        print(f'check_sizes: longest {kind}: {ours[0][1]} lines, {ours[0][2].split(":", 1)[1]} ({ours[0][3]})')
        for _, lines, name, where in ours:
            if lines > limit:
                failed = True
                print(f'{where}: a {kind} of {lines} lines, {name.split(":", 1)[1]}; the limit is {limit}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
