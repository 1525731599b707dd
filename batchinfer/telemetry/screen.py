"""The live display of a run, as lines of a given width. Knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from batchinfer.telemetry import figures
from batchinfer.telemetry.devices import Reading
from batchinfer.telemetry.fitting import LABEL, Part, bar, labelled
from batchinfer.telemetry.places import place_lines
from batchinfer.telemetry.snapshot import Snapshot

_HEIGHT = 24
_OTHER_LINES = 5
_MIN_BAR = 10
_MAX_BAR = 50
_WARNING = "not dim yellow"


def frame(
    snapshot: Snapshot,
    readings: Sequence[Reading],
    *,
    width: int,
    height: int = _HEIGHT,
    ascii_only: bool = False,
) -> list[Text]:
    """Return the lines of the display, none wider than `width` cells; with many workers or GPUs, they are
    folded into `height` lines."""
    lines = [
        _header(snapshot),
        _rows(snapshot, width, ascii_only=ascii_only),
        _time(snapshot, width),
        _units(snapshot, width),
        *place_lines(snapshot, readings, width=width, room=height - _OTHER_LINES),
        _errors(snapshot, width),
    ]
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
        if ascii_only:
            line.plain = line.plain.replace("…", "~").replace("°", "").replace("·", "-")
    return lines


def _header(snapshot: Snapshot) -> Text:
    text = Text(snapshot.job, style="bold")
    text.append(f"   run {snapshot.run}", style="not bold dim")
    if snapshot.model:
        text.append(f"   model {figures.model_name(snapshot.model)}", style="not bold dim")
    if snapshot.share:
        text.append(f"   share {snapshot.share}", style="not bold dim")
    if snapshot.rows_reused:
        reused = snapshot.rows_reused / snapshot.rows_total
        text.append(f"   {figures.percent(reused)} reused", style="not bold cyan")
    return text


def _rows(snapshot: Snapshot, width: int, *, ascii_only: bool) -> Text:
    """Draw the bar in what room the figures leave; in a narrow window, figures go before the bar."""
    parts: list[Part] = [
        (0, f"{figures.percent(snapshot.settled_ratio):>7}"),
        (1, f"{figures.short(snapshot.rows_settled)} / {figures.short(snapshot.rows_total)}"),
        (2, figures.rate(snapshot.rows_per_second)),
    ]
    text = labelled("rows", [(0, " " * _MIN_BAR), *parts], width=width)
    room = min(_MIN_BAR + max(0, width - text.cell_len), _MAX_BAR)
    room = max(0, min(room, width - LABEL))
    drawn = bar(snapshot.settled_ratio, room, ascii_only=ascii_only)
    return labelled("rows", [drawn, *parts], width=width)


def _time(snapshot: Snapshot, width: int) -> Text:
    parts: list[str | Text | Part] = [
        (1, f"elapsed {figures.duration(snapshot.elapsed_s)}"),
        f"ETA {_eta(snapshot)}",
        (2, cost(snapshot)),
        (3, "" if snapshot.energy_joules is None else figures.energy(snapshot.energy_joules)),
    ]
    return labelled("time", parts, width=width)


def _eta(snapshot: Snapshot) -> str:
    # In the first seconds, one batch more or less changes everything.
    running = any(worker.state == "running" for worker in snapshot.workers)
    early = snapshot.last_commit_s is None and snapshot.num_batches < 2  # noqa: PLR2004 - see above
    if snapshot.eta_s is None or early or not running:
        return "--"
    estimate = figures.duration(snapshot.eta_s)
    if snapshot.eta_range_s is None:
        return estimate
    least, most = (figures.duration(seconds) for seconds in snapshot.eta_range_s)
    return f"{estimate} ({least} to {most})" if least != most else estimate


def cost(snapshot: Snapshot) -> str:
    """Return `cost 0.38 of 2.00`; nothing where no price is known."""
    if snapshot.cost is None:
        return ""
    limit = "" if snapshot.max_cost is None else f" of {snapshot.max_cost:,.2f}"
    return f"cost {figures.money(snapshot.cost)}{limit}"


def _units(snapshot: Snapshot, width: int) -> Text:
    parts: list[str | Text | Part] = [
        f"{figures.count(snapshot.units_done)} / {figures.count(snapshot.units_total)} committed"
    ]
    if snapshot.last_commit_s is not None:
        ago = figures.duration(max(0.0, snapshot.elapsed_s - snapshot.last_commit_s))
        parts.append((1, f"last {ago} ago"))
    if snapshot.tokens_per_second:
        parts.append((3, f"{figures.short(snapshot.tokens_per_second)} tokens/s"))
    if snapshot.padding_ratio is not None:
        parts.append((2, f"padding {figures.percent(snapshot.padding_ratio)}"))
    return labelled("units", parts, width=width)


def _errors(snapshot: Snapshot, width: int) -> Text:
    parts: list[str | Text | Part] = [Text("none", style="dim")]
    if snapshot.rows_error:
        parts = [Text(_failed(snapshot), style="not dim red"), (3, by_code(snapshot))]
    if snapshot.num_splits:
        parts.append((2, f"splits {figures.count(snapshot.num_splits)}"))
    if snapshot.num_restarts:
        parts.append((1, Text(f"restarts {snapshot.num_restarts}", style=_WARNING)))
    return labelled("errors", parts, width=width)


def _failed(snapshot: Snapshot) -> str:
    """Return `37 (0.4 %) of 12,000 allowed`."""
    text = f"{figures.count(snapshot.rows_error)} ({figures.percent(snapshot.error_ratio)})"
    allowed = snapshot.errors_allowed
    return text if allowed is None else f"{text} of {figures.count(allowed)} allowed"


def by_code(snapshot: Snapshot) -> str:
    """Return `decode 31 · timeout 6`."""
    return " · ".join(f"{code} {figures.count(number)}" for code, number in snapshot.errors.items())
