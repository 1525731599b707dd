"""Small charts as inline SVG. They stretch; their labels are HTML beside them, and stay readable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchinfer.telemetry import figures
from batchinfer.telemetry.report.markup import Html, join, tag

HEIGHT = 100.0
_ROWS = 24
_FEW = 7
"""Fewer bars than these are no wider than they would be among so many."""


@dataclass(frozen=True, slots=True)
class Line:
    """Values over time, one to a bucket; None where nothing was seen."""

    name: str
    values: Sequence[float | None]
    style: str = "accent"


def over_time(
    title: str,
    lines: Sequence[Line],
    *,
    width_s: float,
    seconds: float,
    shown: str = "{}",
    top: float | None = None,
    filled: bool = False,
) -> Html:
    """Return lines over the time of a run, in buckets of `width_s`. `shown` is how a value is written, its
    number short; `top` the end of the scale, by default the largest value."""
    peak = top or max((value for line in lines for value in line.values if value is not None), default=0.0)
    peak = peak or 1.0
    count = max((len(line.values) for line in lines), default=0)
    drawn = [_drawn(line, peak, filled=filled) for line in lines]
    tips = [
        tag(
            "rect",
            tag("title", _tip(lines, index, width_s, shown)),
            x=index,
            y=0,
            width=1,
            height=HEIGHT,
            class_="tip",
        )
        for index in range(count)
    ]
    svg = _svg(title, join(_grid(count), *drawn, *tips), width=seconds / width_s)
    marks = (_written(peak, shown), _written(peak / 2, shown), _written(0.0, shown))
    return _figure(title, svg, marks, _times(seconds), lines, width_s, shown)


def stacked(title: str, lines: Sequence[Line], *, width_s: float, seconds: float) -> Html:
    """Return shares of the whole over time, one on the other; each bucket adds up to 100 %."""
    count = max((len(line.values) for line in lines), default=0)
    wholes = [sum(line.values[at] or 0.0 for line in lines) for at in range(count)]
    shares = [
        Line(
            line.name,
            [(line.values[at] or 0.0) / wholes[at] if wholes[at] else None for at in range(count)],
            line.style,
        )
        for line in lines
    ]
    bars = []
    for at in range(count):
        low = 0.0
        for line in shares:
            share = line.values[at] or 0.0
            if share > 0.002:  # noqa: PLR2004 - less than a pixel
                y, high = HEIGHT * (1 - low - share), HEIGHT * share
                bars.append(
                    tag("rect", x=at, y=f"{y:.2f}", width="1.02", height=f"{high:.2f}", class_=line.style)
                )
            low += share
        tip = _tip([line for line in shares if line.values[at]], at, width_s, "%")
        bars.append(tag("rect", tag("title", tip), x=at, y=0, width=1, height=HEIGHT, class_="tip"))
    svg = _svg(title, join(*bars), width=seconds / width_s)
    return _figure(title, svg, ("100 %", "50 %", "0"), _times(seconds), shares, width_s, "%")


def histogram(title: str, bars: Sequence[tuple[str, float, str]], *, low: str, high: str) -> Html:
    """Return bars: each a label, a height, and what is said of it. The scale goes from `low` to `high`."""
    peak = max((value for _, value, _ in bars), default=0.0) or 1.0
    drawn = []
    wide = max(len(bars), _FEW)
    for at, (_, value, said) in enumerate(bars, (wide - len(bars)) // 2):
        high_px = HEIGHT * value / peak
        drawn.append(
            tag(
                "rect",
                tag("title", said),
                x=f"{at + 0.06:.2f}",
                y=f"{HEIGHT - high_px:.2f}",
                width="0.88",
                height=f"{high_px:.2f}",
                class_="accent",
            )
        )
    svg = _svg(title, join(_grid(wide), *drawn), width=wide)
    ends = (low, high) if low != high else (low,)
    few = " few" if len(bars) < _FEW else ""
    body = [(label, figures.count(round(value))) for label, value, _ in bars]
    return tag(
        "figure",
        tag("figcaption", title),
        tag(
            "div",
            tag("div", tag("span", figures.short(peak)), tag("span", "0"), class_="y", aria_hidden="true"),
            svg,
            tag("div", *(tag("span", end) for end in ends), class_=f"x{few}", aria_hidden="true"),
            class_="plot",
        ),
        _details(("", "count"), body),
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, class_: str | None = None) -> Html:
    """Return a table that scrolls by itself where it is too wide."""
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", *(tag("th", name, scope="col") for name in head))),
            tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows)),
            class_=class_,
        ),
        class_="scroll",
        tabindex="0",
    )


def _drawn(line: Line, peak: float, *, filled: bool) -> Html:
    """Draw a line as steps do not jump: through the middle of each bucket."""
    runs: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(line.values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at + 0.5, HEIGHT * (1 - min(value / peak, 1.0))))
    drawn = []
    for run in (run for run in runs if run):
        # A single point would be invisible.
        points = run if len(run) > 1 else [(run[0][0] - 0.5, run[0][1]), (run[0][0] + 0.5, run[0][1])]
        text = " ".join(f"{x:.1f},{y:.2f}" for x, y in points)
        if filled:
            area = f"{points[0][0]:.1f},{HEIGHT:.0f} {text} {points[-1][0]:.1f},{HEIGHT:.0f}"
            drawn.append(tag("polygon", points=area, class_=f"area {line.style}"))
        drawn.append(tag("polyline", points=text, class_=f"line {line.style}"))
    return join(*drawn)


def _svg(title: str, body: Html, *, width: float) -> Html:
    box = f"0 0 {width:g} {HEIGHT:g}"
    return tag("svg", tag("title", title), body, view_box=box, preserve="none", role="img")


def _grid(width: float) -> Html:
    lines = (tag("line", x1=0, x2=max(width, 1), y1=y, y2=y, class_="grid") for y in (0, 50, 100))
    return join(*lines)


def _times(seconds: float) -> tuple[str, str, str]:
    return ("0", figures.duration(seconds / 2), figures.duration(seconds))


def _figure(
    title: str,
    svg: Html,
    marks: Sequence[str],
    times: Sequence[str],
    lines: Sequence[Line],
    width_s: float,
    shown: str,
) -> Html:
    legend = None
    if len(lines) > 1:
        keys = (tag("li", tag("i", class_=line.style), line.name) for line in lines)
        legend = tag("ul", *keys, class_="legend")
    return tag(
        "figure",
        tag("figcaption", title),
        tag(
            "div",
            tag("div", *(tag("span", mark) for mark in marks), class_="y", aria_hidden="true"),
            svg,
            tag("div", *(tag("span", time) for time in times), class_="x", aria_hidden="true"),
            class_="plot",
        ),
        legend,
        _details(("time", *(line.name for line in lines)), _thinned(lines, width_s, shown)),
    )


def _details(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Html:
    return tag("details", tag("summary", "as a table"), table(head, rows))


def _thinned(lines: Sequence[Line], width_s: float, shown: str) -> list[list[str]]:
    """Return the values as rows of a table, the mean of several where they are many."""
    count = max((len(line.values) for line in lines), default=0)
    step = max(1, -(-count // _ROWS))
    rows = []
    for start in range(0, count, step):
        cells = [figures.duration(start * width_s)]
        for line in lines:
            seen = [value for value in line.values[start : start + step] if value is not None]
            cells.append(_written(sum(seen) / len(seen), shown) if seen else "–")
        rows.append(cells)
    return rows


def _tip(lines: Sequence[Line], at: int, width_s: float, shown: str) -> str:
    parts = [f"{figures.duration(at * width_s)} – {figures.duration((at + 1) * width_s)}"]
    for line in lines:
        value = line.values[at] if at < len(line.values) else None
        if value is not None:
            parts.append(f"{line.name}: {_written(value, shown)}")
    return "\n".join(parts)


def _written(value: float, shown: str) -> str:
    return figures.percent(value) if shown == "%" else shown.format(figures.short(value))
