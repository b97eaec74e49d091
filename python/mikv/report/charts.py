"""Charts of a run, as Vega-Lite specifications. A chart is there if the run has two values for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .runs import KINDS, Point, Run

#: At least 3 to 1 on white and on the dark page; shapes tell the same.
_COLOURS = ("#2f7fd1", "#c9631f", "#808080")
_SHAPES = ("circle", "square", "triangle-up")
#: Of lines: Okabe and Ito's, without the palest.
_PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a7a00", "#56a0d3", "#808080", "#a05a2c"]
#: Of the parts of a cache; the others take what is left, in turn.
_PARTS = {"staged": "#b8a000", "hi": "#1f6fc0", "lo": "#7fb2e5", "codes": "#3f9fa0", "scales": "#d55e00", "ids": "#8c5fc0",
          "scores": "#cc79a7", "calibration": "#4f9a3a", "slack": "#8a8a8a"}  # fmt: skip
_OTHER_PARTS = ["#a05a2c", "#e08a8a", "#5a7a90", "#c04f80", "#90a040"]
#: No place on a logarithmic axis: the full cache differs by rounding alone.
_LEAST_KLD = 1e-6
#: Pixels: of a chart with points, of its names, and the width for which they are laid out.
_HEIGHT, _FONT, _NARROW = 340, 11, 310

Spec = dict[str, Any]


@dataclass
class Chart:
    title: str
    note: str
    spec: Spec


def charts_of(run: Run) -> list[Chart]:
    scores = [_score(task, [p for p in run.points if p.task == task]) for task in _tasks(run)]
    made = (*scores, _divergence(run), _memory(run), _speed(run), _attention(run))
    return [chart for chart in made if chart is not None]


def _axis(field: str, title: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", "title": title, **more}


def _whole(description: str, values: list[Spec], height: int, **more: Any) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "background": None,
        "data": {"values": values},
        **more,
    }


def _scatter(title: str, points: list[tuple[Point, float, float]], y: Spec, y_name: str, form: str) -> Spec:
    """Points with their names, by kind. Bits are on a logarithmic axis: most caches have few."""
    xs = [x for _, x, _ in points]
    low, high = math.log2(min(xs)) - 0.15, math.log2(max(xs)) + 0.15
    scale = y["scale"]
    of_y = math.log10 if scale.get("type") == "log" else float
    bottom, top = (of_y(limit) for limit in scale["domain"])
    at = [((math.log2(x) - low) / (high - low), (of_y(value) - bottom) / (top - bottom)) for _, x, value in points]
    values = [
        {"cache": p.cache, "kind": p.kind, "x": x, "y": value, "right": at[i][0] > 0.5, "dy": dy}
        for i, ((p, x, value), dy) in enumerate(zip(points, _label_offsets(points, at), strict=True))
    ]
    ticks = [t for t in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if low <= math.log2(t) <= high]
    x_axis = _axis(
        "x",
        "bits per element",
        scale={"type": "log", "base": 2, "domain": [2**low, 2**high], "nice": False},
        axis={"values": ticks, "format": "~g"},
    )
    tooltip = [
        {"field": "cache", "title": "cache"},
        {"field": "x", "title": "bits per element", "format": ".2f"},
        {"field": "y", "title": y_name, "format": form},
    ]
    used = [i for i, kind in enumerate(KINDS) if any(p.kind == kind for p, _, _ in points)]
    kind = {"field": "kind", "type": "nominal", "title": None, "legend": {"orient": "top"}}
    domain = [KINDS[i] for i in used]
    marks = {
        "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
        "encoding": {
            "color": kind | {"scale": {"domain": domain, "range": [_COLOURS[i] for i in used]}},
            "shape": kind | {"scale": {"domain": domain, "range": [_SHAPES[i] for i in used]}},
            "tooltip": tooltip,
        },
    }
    text = {"type": "text", "fontSize": _FONT, "color": "currentColor", "limit": 180, "aria": False}
    placed = {"align": {"expr": "datum.right ? 'right' : 'left'"}, "dx": {"expr": "datum.right ? -8 : 8"}}
    names = {"mark": text | placed | {"dy": {"expr": "datum.dy"}}, "encoding": {"text": {"field": "cache"}}}
    return _whole(title, values, _HEIGHT, encoding={"x": x_axis, "y": y}, layer=[marks, names])


def _label_offsets(points: list[tuple[Point, float, float]], at: list[tuple[float, float]]) -> list[int]:
    """By how many pixels each name is moved down or up, so that names do not cover each other on a narrow screen."""
    line = _FONT + 3
    spots = [(x * _NARROW, (1 - y) * _HEIGHT) for x, y in at]
    taken = [(x - 6, x + 6, y) for x, y in spots]  # left, right, middle: of the points, then of names too
    offsets = [0] * len(points)
    for i in sorted(range(len(points)), key=lambda i: (-at[i][1], at[i][0])):
        x, y = spots[i]
        width = 0.6 * _FONT * len(points[i][0].cache)
        left = x - 8 - width if at[i][0] > 0.5 else x + 8
        for step in range(2 * len(points)):
            offset = (step + 1) // 2 * line * (1 if step % 2 else -1)
            middle = y + offset
            free = all(end < left or left + width < begin or abs(m - middle) > line - 1 for begin, end, m in taken)
            if free and 0 <= middle <= _HEIGHT:
                break
        else:
            offset, middle = 0, y
        taken.append((left, left + width, middle))
        offsets[i] = offset
    return offsets


def _tasks(run: Run) -> list[str | None]:
    """Each task, None in a run of one; "mmlu: SUBJECT" is part of "mmlu", where that is there."""
    tasks = dict.fromkeys(p.task for p in run.points)
    return [task for task in tasks if task is None or ": " not in task or task.partition(": ")[0] not in tasks]


def _score(task: str | None, points_of_task: list[Point]) -> Chart | None:
    points = [(p, p.score_bits, 100 * p.score) for p in points_of_task if p.score_bits and p.score is not None]
    if len(points) < 2:
        return None
    n = {p.n_scored for p, _, _ in points}
    of = f" of {n.pop()}" if len(n) == 1 else ""
    what = "equal likeliest tokens" if task == "kld" else "right answers"
    y = _axis("y", f"{what}, %", scale={"domain": [-4, 104], "nice": False}, axis={"values": [0, 20, 40, 60, 80, 100]})
    title = "Score against bits per element" + (f": {task}" if task else "")
    return Chart(title, f"Share of {what}{of}.", _scatter(title, points, y, f"{what}, %", ".1f"))


def _divergence(run: Run) -> Chart | None:
    points = [(p, p.bits, p.kld) for p in run.points if p.bits and p.kld is not None and p.kld > _LEAST_KLD]
    if len(points) < 2:
        return None
    lost = [p.cache for p in run.points if p.bits and p.kld is not None and p.kld <= _LEAST_KLD]
    note = "Mean KL divergence to the full cache, in nats, on a logarithmic axis. Lower is better."
    if lost:
        note += f" Too close to the full cache for this axis: {', '.join(lost)}."
    least, most = min(y for _, _, y in points), max(y for _, _, y in points)
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most * 1.001))
    ticks = [digit * 10.0**power for power in range(low, high + 1) for digit in ((1, 2, 5) if high - low < 3 else (1,))]
    scale = {"type": "log", "domain": [10.0**low, 10.0**high], "nice": False}
    y = _axis("y", "KL divergence, nats", scale=scale, axis={"format": "~g", "values": ticks})
    title = "KL divergence against bits per element"
    return Chart(title, note, _scatter(title, points, y, "KL divergence, nats", ".4f"))


def _memory(run: Run) -> Chart | None:
    if not any(p.bytes_by_part for p in run.points):
        return None
    whole = {p.cache: p.bytes_by_part or {"all": p.bytes or 0.0} for p in run.points if p.bytes_by_part or p.bytes}
    parts = list(dict.fromkeys(part for of_cache in whole.values() for part in of_cache))
    values = [
        {"cache": cache, "part": part, "mib": n_bytes / 2**20, "place": parts.index(part)}
        for cache, of_cache in whole.items()
        for part, n_bytes in of_cache.items()
    ]
    others = [part for part in parts if part not in _PARTS]
    colours = _PARTS | {part: _OTHER_PARTS[i % len(_OTHER_PARTS)] for i, part in enumerate(others)}
    title = "Memory by part"
    colour = {"field": "part", "type": "nominal", "title": None, "legend": {"orient": "top", "columns": 3}}
    encoding = {
        "y": {"field": "cache", "type": "nominal", "sort": list(whole), "title": None, "axis": {"labelLimit": 150}},
        "x": _axis("mib", "MiB"),
        "color": colour | {"scale": {"domain": parts, "range": [colours[part] for part in parts]}},
        "order": {"field": "place"},
        "tooltip": [{"field": "cache"}, {"field": "part"}, {"field": "mib", "title": "MiB", "format": ".3f"}],
    }
    spec = _whole(title, values, 26 * len(whole), mark={"type": "bar"}, encoding=encoding)
    return Chart(title, "Bytes of the cache at the end of a chunk.", spec)


def _speed(run: Run) -> Chart | None:
    points = [(p, p.at, p.speed) for p in run.points if p.at is not None and p.speed]
    return _lines("Speed against tokens in the cache", "Median. Higher is better.", "tokens per second", points)


def _attention(run: Run) -> Chart | None:
    points = [(p, p.at, p.ns) for p in run.points if p.at is not None and p.ns]
    what = "nanoseconds per token and KV head"
    return _lines("Time of attention", "Median. Lower is better.", what, points)


def _lines(title: str, note: str, what: str, points: list[tuple[Point, float, float]]) -> Chart | None:
    if len(points) < 2:
        return None
    values = [{"cache": p.cache, "x": x, "y": y} for p, x, y in points]
    caches = list(dict.fromkeys(v["cache"] for v in values))
    encoding = {
        "x": _axis("x", "tokens in the cache"),
        "y": _axis("y", what, scale={"zero": True}),
        "color": {"field": "cache", "type": "nominal", "title": None, "sort": caches, "scale": {"range": _PALETTE},
                  "legend": {"orient": "top", "columns": 3}},
        "tooltip": [{"field": "cache"}, {"field": "x", "title": "tokens"}, {"field": "y", "title": what, "format": ".4~g"}],
    }  # fmt: skip
    mark = {"type": "line", "point": {"size": 60}}
    return Chart(title, note, _whole(title, values, 300, mark=mark, encoding=encoding))
