"""python -m mikv.report: a page with charts and tables of measured runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import _page
from .._cli import Parser, check_folder_of, run
from .._files import write_whole

_EPILOG = """\
example:
  mikv eval lines -m smollm2-135m --kv full,mikv,h2o -o lines.json
  mikv eval kld -m smollm2-135m --text book.txt --kv mikv,mikv-max,h2o -o kld.json
  python -m mikv.report lines.json kld.json -o page.html

It reads what `mikv eval`, `mikv bench`, `mikv tune` and python -m mikv.compare write with -o; of `mikv eval suite`, that is
DIR/summary.json. The page holds all that it needs, and opens in any browser. docs/pictures.md says what it shows.
"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser("mikv.report", "Writes a page with charts and tables of measured runs.", _EPILOG)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="what a measuring command wrote")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE.html", help="where to write the page")
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    check_folder_of(options.output)
    from . import page
    from .runs import read

    runs = [read(path) for path in options.runs]
    text = page.build(runs, _page.command("mikv.report", arguments))
    write_whole(options.output, text)
    print(f"{options.output}: {len(runs)} runs, {sum(len(r.rows) for r in runs)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(run("mikv.report", main, sys.argv[1:]))
