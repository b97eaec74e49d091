"""The page of python -m mikv.report: for each run its charts, its table and its command."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from .. import _page
from .._cli import need
from .charts import charts_of
from .runs import Run

_FOLDER = Path(__file__).parent
_REMEDY = "install it: pip install './python[report]'"

#: Column: its title, and how a number is written.
_COLUMNS = {
    "kv": ("cache", ""),
    "cache": ("cache", ""),
    "bits_per_element": ("bits per element", "{:.2f}"),
    "lines_bits_per_element": ("bits per element, lines", "{:.2f}"),
    "bytes": ("size", "bytes"),
    "kv_bytes": ("size", "bytes"),
    "mean": ("KLD mean", "{:.4f}"),
    "median": ("KLD median", "{:.4f}"),
    "p99": ("KLD 99 %", "{:.4f}"),
    "p999": ("KLD 99.9 %", "{:.4f}"),
    "max": ("KLD largest", "{:.4f}"),
    "kld_mean": ("KLD mean", "{:.4f}"),
    "mean_kld": ("KLD mean", "{:.4f}"),
    "kld_median": ("KLD median", "{:.4f}"),
    "kld_p99": ("KLD 99 %", "{:.4f}"),
    "same_top": ("same top", "percent"),
    "score": ("score", "percent"),
    "roofline_share": ("share of roofline", "percent"),
}
#: What the title says already, or what charts show.
_LEFT_OUT = {"simulated", "answers"}


def build(runs: list[Run], command_line: str) -> str:
    """The whole page; the library that draws the charts is in it."""
    specs: list[dict[str, Any]] = []
    sections = [_section(i, run, specs) for i, run in enumerate(runs)]
    body = (
        "<header><h1>Measured caches</h1>"
        "<p class='soft'>Each run has its own model and settings: compare caches within a run.</p></header>\n"
        f"<main>{''.join(sections)}</main>\n{_page.footer(command_line)}"
    )
    scripts = [_page.part("page.js", _FOLDER)]
    if specs:
        bundle = need("vl_convert", _REMEDY).javascript_bundle("window.vegaEmbed = vegaEmbed;")
        scripts.insert(0, f"(() => {{{bundle}}})();")
    style = _page.part("page.css", _FOLDER)
    return _page.build("Measured caches", body, specs, style=style, scripts=scripts, compiles=bool(specs))


def _section(i: int, run: Run, specs: list[dict[str, Any]]) -> str:
    charts = []
    for chart in charts_of(run):
        charts.append(
            f"<figure><figcaption><h3>{html.escape(chart.title)}</h3><p class='soft'>{html.escape(chart.note)}</p>"
            f"</figcaption><div class='chart' id='chart-{len(specs)}'></div></figure>"
        )
        specs.append(chart.spec)
    notes = [f"Not measured: {reason}" for reason in run.not_run]
    if run.meta.get("interrupted"):
        notes.append("The run was interrupted: the rows are of what was done.")
    return (
        f"<section aria-labelledby='run-{i}'><h2 id='run-{i}'>{html.escape(run.title)}</h2>"
        f"<p class='soft'>{html.escape(_about(run))}</p><div class='charts'>{''.join(charts)}</div>"
        f"<div class='scroll' role='region' tabindex='0' aria-label='Table of {html.escape(run.title)}'>{_table(run)}</div>"
        + "".join(f"<p>{html.escape(note)}</p>" for note in notes)
        + f"<pre><code>{html.escape(run.command_line)}</code></pre></section>"
    )


def _about(run: Run) -> str:
    """File, machine and versions, as far as the run says."""
    known = [f"{run.path.name}"]
    for key, what in (
        ("date", ""),
        ("cpu", ""),
        ("processor", ""),
        ("threads", " threads"),
        ("context", " tokens of context"),
    ):
        value = run.meta.get(key)
        if value:
            known.append(f"{', '.join(map(str, value)) if isinstance(value, list) else value}{what}")
    version = run.meta.get("version", run.meta.get("mikv"))
    if version:
        known.append(f"mikv {version}{' ' + str(run.meta['commit']) if run.meta.get('commit') else ''}")
    return ", ".join(known)


def _table(run: Run) -> str:
    """Plain values of all rows. Buttons of the head sort it (page.js)."""
    keys = dict.fromkeys(key for row in run.rows for key in row if key not in _LEFT_OUT)
    keys = {k: None for k in keys if all(not isinstance(row.get(k), (dict, list)) for row in run.rows)}
    shown = [k for k in keys if any(row.get(k) is not None for row in run.rows)]
    head = "".join(
        f"<th scope='col'><button type='button'>{html.escape(_COLUMNS.get(key, (key.replace('_', ' '), ''))[0])}</button></th>"
        for key in shown
    )
    rows = "".join("<tr>" + "".join(_cell(key, row.get(key)) for key in shown) + "</tr>" for row in run.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "<td class='n'>-</td>"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"<td>{html.escape(str(value))}</td>"
    form = _COLUMNS.get(key, ("", ""))[1]
    if form == "bytes":
        text = _page.size(value)
    elif form == "percent":
        text = f"{100 * value:.1f} %"
    else:
        text = (form or ("{:,}" if isinstance(value, int) else "{:.4g}")).format(value)
    return f"<td class='n' data-sort='{value!r}'>{text}</td>"
