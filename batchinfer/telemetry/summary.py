"""The end screen: what went in, what came out, how fast, what failed, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from rich.text import Text

from batchinfer.data import STAGES
from batchinfer.redact import redact
from batchinfer.telemetry import figures
from batchinfer.telemetry.advice import advise
from batchinfer.telemetry.fitting import LABEL
from batchinfer.telemetry.screen import by_code, cost
from batchinfer.telemetry.snapshot import Snapshot

_MESSAGE = 160


def summary(snapshot: Snapshot) -> list[Text]:
    """Return the lines of the end screen of a run that is finished; none for one that never began.

    `.plain` of each is the same without colours.
    """
    finished = snapshot.finished
    if finished is None or not snapshot.started:
        return []
    if finished.complete and snapshot.units_reused == snapshot.units_total:
        return [_nothing_left(snapshot)]
    lines = [_headline(snapshot), *_counts(snapshot)]
    if not finished.complete and not snapshot.units_committed:
        # It came to nothing, and the error that ended it says why.
        return lines + ([_line("report", figures.plain(snapshot.report))] if snapshot.report else [])
    if snapshot.units_committed:
        lines.append(_line("speed", _speed(snapshot)))
        lines += _stages(snapshot)
        lines += _spent(snapshot)
    lines.append(_line("output", figures.plain(snapshot.output)))
    if snapshot.report:
        lines.append(_line("report", figures.plain(snapshot.report)))
    lines += _errors(snapshot)
    lines += [_line("" if number else "advice", text) for number, text in enumerate(advise(snapshot))]
    if finished.complete:
        lines += _next(snapshot)
    return lines


def _line(label: str, value: str, style: str = "") -> Text:
    return Text.assemble((label.ljust(LABEL), "dim"), (value, style))


def _nothing_left(snapshot: Snapshot) -> Text:
    failed = _rows_error(snapshot)
    whole = f"all {figures.count(snapshot.rows_total)} rows are committed"
    rest = f"   {snapshot.job}   {whole if snapshot.rows_total else 'the input has no rows'}"
    rest += f" ({figures.count(failed)} failed)" if failed else ""
    return Text.assemble(("nothing left to do", "bold green"), rest)


def _headline(snapshot: Snapshot) -> Text:
    finished = snapshot.finished
    assert finished is not None
    if not finished.complete and not finished.exit_code:
        what, style = "done with this share; others have units left", "bold green"
    elif not finished.complete:
        what, style = f"stopped (exit code {finished.exit_code})", "bold yellow"
    elif _rows_error(snapshot):
        what, style = "done, with errors within the budget", "bold yellow"
    else:
        what, style = "done", "bold green"
    rest = f"   {snapshot.job}   run {snapshot.run}   {figures.duration(finished.seconds)}"
    return Text.assemble((what, style), rest)


def _rows_error(snapshot: Snapshot) -> int:
    finished = snapshot.finished
    whole = finished.rows_error if finished else None
    return snapshot.rows_error if whole is None else whole


def _counts(snapshot: Snapshot) -> Iterator[Text]:
    """Account for every row: of the whole output where it was counted, else of this run."""
    finished = snapshot.finished
    assert finished is not None
    total, committed = figures.count(snapshot.rows_total), figures.count(snapshot.rows_committed)
    whole = finished.complete and finished.rows_ok is not None
    if whole:
        split = _split(finished.rows_ok, finished.rows_error, finished.rows_filtered)
        yield _line("rows", f"{total} in = {split}")
    else:
        share = f"   share {snapshot.share}" if snapshot.share else ""
        yield _line("rows", f"{committed} of {total} committed{share}")
    if snapshot.rows_reused:
        yield _line("reused", f"{figures.count(snapshot.rows_reused)} rows, committed by earlier runs")
    if snapshot.rows_of_others:
        yield _line("others", f"{figures.count(snapshot.rows_of_others)} rows, committed by other processes")
    if not whole and snapshot.units_committed:
        split = _split(snapshot.rows_ok, snapshot.rows_error, snapshot.rows_filtered)
        yield _line("this run", split)


def _split(ok: int | None, error: int | None, filtered: int | None) -> str:
    parts = ((ok, "ok"), (error, "error"), (filtered, "filtered"))
    return " + ".join(f"{figures.count(number or 0)} {what}" for number, what in parts)


def _speed(snapshot: Snapshot) -> str:
    num_workers = len(snapshot.workers)
    parts = [
        f"{figures.short(snapshot.mean_rows_per_second)} rows/s",
        f"{num_workers} worker{'s' if num_workers != 1 else ''}",
    ]
    if snapshot.mean_busy_ratio is not None:
        parts.append(f"busy {figures.percent(snapshot.mean_busy_ratio)}")
    if snapshot.padding_ratio is not None:
        parts.append(f"padding {figures.percent(snapshot.padding_ratio)}")
    return "   ".join(parts)


def _stages(snapshot: Snapshot) -> Iterator[Text]:
    """Say what the devices did with their time, and how much memory that took."""
    whole = sum(snapshot.stage_seconds.values())
    if whole and snapshot.start_s is not None:
        yield _line("start", figures.start(snapshot.start_s, snapshot.elapsed_s))
    if whole:
        shares = {stage: snapshot.stage_seconds.get(stage, 0.0) / whole for stage in STAGES}
        waits = "   ".join(f"{stage} {shares[stage] * 100:.1f}" for stage in STAGES[1:])
        yield _line("device", f"computed {shares[STAGES[0]] * 100:.1f} %   waited for, in %: {waits}")
    if snapshot.model_rate:
        ratio = snapshot.steady_rate / snapshot.model_rate
        rates = f"{figures.short(snapshot.steady_rate)} of {figures.short(snapshot.model_rate)} rows/s"
        yield _line("measured", f"{ratio * 100:.1f} % of the model alone ({rates})")
    if snapshot.peak_bytes:
        yield _line("memory", f"{figures.gib(snapshot.peak_bytes)} GiB in the workers at most")


def _spent(snapshot: Snapshot) -> Iterator[Text]:
    """Say what the run cost, in money and energy, and what went on in it that should not."""
    if snapshot.cost is not None:
        spent = cost(snapshot).removeprefix("cost ")
        yield _line("cost", f"{spent}   {snapshot.device_hours:.3g} device-hours")
    if snapshot.energy_joules is not None:
        joules = f"{snapshot.energy_joules:,.0f} J"
        whole = figures.energy(snapshot.energy_joules)
        taken = whole if whole == joules else f"{whole} ({joules})"
        yield _line("energy", f"{taken} by the GPUs, whoever used them")
    troubles = (
        ("batches computed in pieces", snapshot.num_splits),
        ("restarts of workers", snapshot.num_restarts),
    )
    told = [f"{what}: {figures.count(number)}" for what, number in troubles if number]
    if told:
        yield _line("trouble", "   ".join(told))


def _errors(snapshot: Snapshot) -> Iterator[Text]:
    """Say how many rows failed and why, with a few of them."""
    if not snapshot.rows_error:
        return
    total = f"{figures.count(snapshot.rows_error)} ({figures.percent(snapshot.error_ratio)})"
    if snapshot.rows_reused or snapshot.rows_of_others:
        total += f" in this run, {figures.count(_rows_error(snapshot))} in all"
    if snapshot.errors_allowed is not None:
        total += f" of {figures.count(snapshot.errors_allowed)} allowed"
    yield Text.assemble(("errors".ljust(LABEL), "dim"), (total, "red"), f"   {by_code(snapshot)}")
    for error in snapshot.error_samples:
        place = f"{figures.plain(error.source)} row {figures.count(error.row)}"
        why = figures.plain(redact(error.message), longest=_MESSAGE)
        yield _line("", f"{place}   {error.code} in {figures.plain(error.stage)}: {why}")


def _next(snapshot: Snapshot) -> Iterator[Text]:
    verify = f"batchinfer verify {shlex.quote(figures.plain(snapshot.output))}"
    if _rows_error(snapshot):
        yield _line("next", f"batchinfer errors {shlex.quote(figures.plain(snapshot.output))}", "cyan")
        yield _line("", verify, "cyan")
    else:
        yield _line("next", verify, "cyan")
