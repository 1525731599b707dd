"""The live display of a run, as lines of a given width. Knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from batchinfer.telemetry import figures
from batchinfer.telemetry.devices import Reading
from batchinfer.telemetry.snapshot import Snapshot, WorkerState

_LABEL = 10
_MAX_WORKERS = 8
_MIN_BAR = 10
_MAX_BAR = 50
_MIN_RATE_S = 5.0
_SEPARATOR = "   "


def frame(
    snapshot: Snapshot, readings: Sequence[Reading], *, width: int, ascii_only: bool = False
) -> list[Text]:
    """Return the lines of the display, none wider than `width` cells."""
    gpus = {f"cuda:{reading.gpu.index}": reading for reading in readings}
    shown = snapshot.workers[:_MAX_WORKERS]
    lines = [
        _header(snapshot),
        _rows(snapshot, width, ascii_only=ascii_only),
        _units(snapshot),
        *(_worker(worker, gpus.get(worker.device), snapshot.elapsed_s) for worker in shown),
    ]
    if len(snapshot.workers) > len(shown):
        lines.append(_labelled("", [f"and {len(snapshot.workers) - len(shown)} more workers"]))
    lines.append(_errors(snapshot))
    for line in lines:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return lines


def _labelled(label: str, parts: Sequence[str | Text], style: str = "") -> Text:
    text = Text(label.ljust(_LABEL), style="dim", end="")
    for number, part in enumerate(part for part in parts if part):
        text.append(_SEPARATOR if number else "")
        text.append(part if isinstance(part, Text) else Text(part, style=style or "not dim"))
    return text


def _header(snapshot: Snapshot) -> Text:
    text = Text(snapshot.job, style="bold")
    text.append(f"   run {snapshot.run}", style="not bold dim")
    if snapshot.model:
        text.append(f"   model {figures.model_name(snapshot.model)}", style="not bold dim")
    if snapshot.rows_reused:
        reused = snapshot.rows_reused / snapshot.rows_total
        text.append(f"   {figures.percent(reused)} reused", style="not bold cyan")
    return text


def _rows(snapshot: Snapshot, width: int, *, ascii_only: bool) -> Text:
    """Draw the bar in what room the figures leave; in a narrow window, figures go before the bar."""
    figures_ = [
        f"{figures.percent(snapshot.settled_ratio):>7}",
        f"{figures.short(snapshot.rows_settled)} / {figures.short(snapshot.rows_total)}",
        figures.rate(snapshot.rows_per_second),
        f"ETA {_eta(snapshot)}",
    ]
    while True:
        text = _SEPARATOR.join(figures_)
        room = width - _LABEL - len(_SEPARATOR) - len(text)
        if room >= _MIN_BAR or len(figures_) == 1:
            break
        figures_.pop(2 if len(figures_) > 2 else 1)  # noqa: PLR2004 - the rate, then the ETA, then the count
    bar = _bar(snapshot.settled_ratio, max(0, min(room, _MAX_BAR)), ascii_only=ascii_only)
    return _labelled("rows", [bar, text])


def _bar(ratio: float, width: int, *, ascii_only: bool) -> Text:
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    done = int(ratio * width)
    bar = Text(full * done, style="not dim green")
    return bar.append(empty * (width - done), style="dim")


def _eta(snapshot: Snapshot) -> str:
    # In the first seconds, one batch more or less changes everything.
    running = any(worker.state == "running" for worker in snapshot.workers)
    early = snapshot.last_commit_s is None and snapshot.num_batches < 2  # noqa: PLR2004 - see above
    if snapshot.eta_s is None or early or not running:
        return "--"
    return figures.duration(snapshot.eta_s)


def _units(snapshot: Snapshot) -> Text:
    done = snapshot.units_reused + snapshot.units_committed
    parts = [f"{figures.count(done)} / {figures.count(snapshot.units_total)} committed"]
    if snapshot.last_commit_s is not None:
        parts.append(f"last {figures.duration(max(0.0, snapshot.elapsed_s - snapshot.last_commit_s))} ago")
    if snapshot.padding_ratio is not None:
        parts.append(f"padding {figures.percent(snapshot.padding_ratio)}")
    parts.append(f"elapsed {figures.duration(snapshot.elapsed_s)}")
    return _labelled("units", parts)


def _worker(worker: WorkerState, reading: Reading | None, elapsed_s: float) -> Text:
    label = f"worker {worker.index}"
    if worker.state == "starting":
        waited = figures.duration(elapsed_s)
        return _labelled(label, [Text(f"starting: loading the model   {waited}", style="not dim yellow")])
    if worker.state != "running":
        style = "not dim yellow" if worker.state == "restarting" else ""
        return _labelled(label, [worker.device, Text(worker.state, style=style)])
    parts: list[str | Text] = [
        worker.device,
        f"busy {worker.busy_ratio:4.0%}".replace("%", " %"),
        figures.rate(worker.samples_per_second),
    ]
    if reading is not None:
        parts += _reading(reading)
    if worker.deaths:
        parts.append(Text(f"died {worker.deaths}x", style="not dim yellow"))
    return _labelled(label, parts)


def _reading(reading: Reading) -> list[str | Text]:
    """Return what a GPU tells about itself."""
    sample, total = reading.sample, reading.gpu.memory_total_bytes
    parts: list[str | Text] = []
    if sample.utilization_ratio is not None:
        parts.append(f"util {sample.utilization_ratio:4.0%}".replace("%", " %"))
    if sample.memory_used_bytes is not None and total:
        parts.append(f"{figures.gib(sample.memory_used_bytes)} / {figures.gib(total)} GiB")
    if sample.power_watts is not None:
        parts.append(f"{sample.power_watts:.0f} W")
    if sample.temperature_celsius is not None:
        parts.append(f"{sample.temperature_celsius:.0f} °C")
    parts.append(Text(figures.plain(reading.gpu.name, longest=30), style="dim"))
    return parts


def _errors(snapshot: Snapshot) -> Text:
    if not snapshot.rows_error:
        return _labelled("errors", [Text("none", style="dim")])
    total = f"{figures.count(snapshot.rows_error)} ({figures.percent(snapshot.error_ratio)})"
    return _labelled("errors", [Text(total, style="not dim red"), by_code(snapshot)])


def by_code(snapshot: Snapshot) -> str:
    """Return `decode 31 · timeout 6`."""
    return " · ".join(f"{code} {figures.count(number)}" for code, number in snapshot.errors.items())
