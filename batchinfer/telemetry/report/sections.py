"""The parts of the report without a time axis: headline, batches, errors, what the run was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batchinfer.telemetry import figures
from batchinfer.telemetry.report.charts import histogram, table
from batchinfer.telemetry.report.markup import Html, join, tag

if TYPE_CHECKING:
    from batchinfer.telemetry.recording import Recording
    from batchinfer.telemetry.series import Spread
    from batchinfer.telemetry.snapshot import Snapshot

_MOST_BARS = 24
_LONGEST = 20_000
_FULL = 10_000_000
"""Smaller numbers are written out."""


def headline(receipt: Mapping[str, Any], snapshot: Snapshot) -> Html:
    """Return the few figures that people ask for first."""
    rows, whole = receipt["rows"], receipt["output_rows"]
    told = whole or rows
    tiles = [
        _tile(_number(told["ok"]), "rows ok", f"of {figures.count(rows['total'])}"),
        _tile(
            _number(told["error"]),
            "rows failed",
            figures.percent(told["error"] / max(told["ok"] + told["error"], 1)),
            bad=bool(told["error"]),
        ),
        _tile(figures.duration(receipt["seconds"]), "wall time", f"start {receipt['started_at'][11:19]} UTC"),
        _tile(figures.rate(snapshot.mean_rows_per_second), "rows, on average", _steady(snapshot)),
    ]
    busy = snapshot.stage_seconds.get("compute", 0.0) / (sum(snapshot.stage_seconds.values()) or 1.0)
    if snapshot.stage_seconds:
        workers = len(snapshot.workers)
        tiles.append(
            _tile(figures.percent(busy), "device busy", f"{workers} worker{'s' if workers != 1 else ''}")
        )
    if rows["reused"]:
        tiles.append(
            _tile(
                figures.percent(rows["reused"] / max(rows["total"], 1)),
                "reused",
                f"{figures.count(rows['reused'])} rows of earlier runs",
            )
        )
    if rows["of_others"]:
        share = f", share {receipt['share']} here" if receipt["share"] else ""
        tiles.append(_tile(_number(rows["of_others"]), "rows by others", f"other processes'{share}"))
    if receipt["cost"] is not None:
        hours = f"{receipt['device_hours']:.3g} device-hours"
        tiles.append(_tile(figures.money(receipt["cost"]), "cost", hours))
    if receipt["energy_joules"] is not None:
        joules = receipt["energy_joules"]
        per_row = joules / max(snapshot.num_samples, 1)
        tiles.append(_tile(figures.energy(joules), "energy", f"{per_row:.3g} J a row"))
    return tag("dl", *tiles, class_="tiles")


def _number(count: int) -> str:
    return figures.count(count) if count < _FULL else figures.short(count)


def _steady(snapshot: Snapshot) -> str:
    if snapshot.model_rate:
        return f"{figures.percent(snapshot.steady_rate / snapshot.model_rate)} of the model alone"
    return f"{figures.count(snapshot.num_batches)} batches"


def _tile(figure: str, what: str, more: str, *, bad: bool = False) -> Html:
    return tag(
        "div",
        tag("dt", what),
        tag("dd", figure),
        tag("dd", more, class_="more"),
        class_="bad" if bad else None,
    )


def batches(recording: Recording, snapshot: Snapshot) -> Html:
    """Return how large batches were, how long they took, and what of them was padding."""
    seconds, rows = recording.batch_seconds, recording.batch_rows
    facts = [
        ("batches", figures.count(snapshot.num_batches)),
        ("rows in a batch", f"{rows.total / max(rows.count, 1):,.1f} on average, {rows.most:,.0f} at most"),
        ("half of them took", f"{_ms(seconds.percentile(0.5))} or less"),
        ("90 %", f"{_ms(seconds.percentile(0.9))} or less"),
        ("99 %", f"{_ms(seconds.percentile(0.99))} or less"),
        ("the slowest", _ms(seconds.most)),
    ]
    if snapshot.padding_ratio is not None:
        tokens = f"{figures.short(snapshot.padded_tokens - snapshot.real_tokens)} tokens"
        facts.insert(
            2, ("padding", f"{figures.percent(snapshot.padding_ratio)} of what was computed, {tokens}")
        )
    return join(
        _facts(facts),
        tag(
            "div",
            histogram(
                "Seconds of a batch on the device",
                _bars(seconds, _ms),
                low=_ms(seconds.least),
                high=_ms(seconds.most),
            ),
            histogram("Rows of a batch", _bars(rows, _rows), low=_rows(rows.least), high=_rows(rows.most)),
            class_="pair",
        ),
    )


def _bars(spread: Spread, written: Any) -> list[tuple[str, float, str]]:
    found = []
    for low, high, count in spread.bars(at_most=_MOST_BARS):
        label = f"{written(low)} to {written(high)}"
        found.append((label, float(count), f"{label}: {figures.count(count)} batches"))
    return found


def _ms(seconds: float) -> str:
    if seconds < 1e-3:  # noqa: PLR2004 - a millisecond
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _rows(number: float) -> str:
    return figures.short(round(number))


def forecast(receipt: Mapping[str, Any]) -> Html | None:
    """Return the time that was foretold beside the one that it took; None where nothing was foretold."""
    told = receipt["forecast"]
    if told is None:
        return None
    end = 1.05 * max(told["high"], told["actual"], 1e-9)
    spots = {name: 1000 * told[name] / end for name in told}
    wide = spots["high"] - spots["low"]
    drawn = (
        _mark("life", spots["low"], wide, f"between {_time(told, 'low')} and {_time(told, 'high')}"),
        _mark("odd", spots["expected"] - 1.5, 3.0, f"expected {_time(told, 'expected')}"),
        _mark("unit", spots["actual"] - 3.0, 6.0, f"took {_time(told, 'actual')}"),
    )
    svg = tag(
        "svg",
        tag("title", "Forecast and actual time"),
        *drawn,
        view_box="0 0 1000 100",
        preserve="none",
        role="img",
    )
    inside = told["low"] <= told["actual"] <= told["high"]
    what = "inside the range" if inside else "outside of the range"
    around = f"{_time(told, 'low')} to {_time(told, 'high')}"
    said = f"It took {_time(told, 'actual')}, {what} of {around}; expected were "
    return join(
        tag("p", said, f"{_time(told, 'expected')}."), tag("div", tag("span"), svg, class_="lane tall")
    )


def _mark(style: str, x: float, width: float, said: str) -> Html:
    return tag("rect", tag("title", said), x=f"{x:.1f}", y=0, width=f"{width:.1f}", height=100, class_=style)


def _time(told: Mapping[str, float], name: str) -> str:
    return figures.duration(told[name])


def errors(receipt: Mapping[str, Any]) -> Html:
    """Return the failed rows by code, with a few of them: their place and why, never what is in them."""
    if not receipt["errors"]:
        return tag("p", "No row failed in this run.", class_="quiet")
    total = sum(receipt["errors"].values())
    by_code = [
        (code, figures.count(number), figures.percent(number / total))
        for code, number in receipt["errors"].items()
    ]
    samples = [
        (f"{one['source']} row {one['row']:,}", one["code"], one["stage"], one["message"])
        for one in receipt["error_samples"]
    ]
    return join(
        table(("code", "rows", "share"), by_code, class_="numbers"),
        tag("h3", "Some of them"),
        table(("where", "code", "stage", "why"), samples, class_="wide"),
        tag("p", "All of them: ", tag("code", f"batchinfer errors {receipt['output']}"), class_="quiet"),
    )


def notes(receipt: Mapping[str, Any]) -> Html | None:
    """Return the warnings of the run; None where there were none."""
    if not receipt["warnings"]:
        return None
    rows = [(figures.duration(one["at_s"]), one["code"], one["message"]) for one in receipt["warnings"]]
    return table(("after", "code", "warning"), rows, class_="wide")


def history(runs: Sequence[Mapping[str, Any]], receipt: Mapping[str, Any]) -> Html | None:
    """Return the runs that left a receipt beside this output, this one last; None where it is the first."""
    if not runs:
        return None
    head = ("started, UTC", "run", "took", "units", "rows ok", "failed", "end")
    shown = table(head, [_run(one) for one in (*runs, receipt)], class_="numbers")
    reused, plan = receipt["rows"]["reused"], receipt["plan"]["id"]
    lost = [one["run"] for one in runs if _never_ended(one) and one["plan"]["id"] == plan]
    if not reused or not lost:
        return shown
    who = f"run{'s' if len(lost) > 1 else ''} {', '.join(lost)}"
    said = f"This run reused {figures.count(reused)} rows; what {who} had committed by then is among them."
    return join(shown, tag("p", said, class_="quiet"))


def _run(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what there is to say of a run; of one whose end nobody told, when it began."""
    began = (_when(one["started_at"]), one["run"])
    if _never_ended(one):
        return (*began, "–", "–", "–", "–", "died, or is still at it")
    return (
        *began,
        figures.duration(one["seconds"]),
        figures.count(one["units"]["committed"]),
        figures.count(one["rows"]["ok"]),
        figures.count(one["rows"]["error"]),
        "done" if one["complete"] else f"stopped, exit {one['exit_code']}",
    )


def _never_ended(receipt: Mapping[str, Any]) -> bool:
    return receipt["finished_at"] is None


def _when(time: str) -> str:
    return time.replace("T", " ")[:19]


def made_of(receipt: Mapping[str, Any]) -> Html:
    """Return what the run was made of: job, model, inputs, settings, machine, versions."""
    machine, model, plan, inputs = (receipt[name] for name in ("machine", "model", "plan", "inputs"))
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "none used"
    facts = [
        ("model", model["path"] or model["entry"] or model["backend"]),
        ("its content", _short_hash(model["content"])),
        ("input", f"{figures.count(inputs['files'])} files, {_bytes(inputs['bytes'])}"),
        ("output", receipt["output"]),
        ("plan", f"{plan['id']}, generation {plan['generation']}"),
        ("fingerprint", plan["fingerprint"][:16]),
        (
            "machine",
            f"{machine['processor']}, {machine['cores']} cores, {_bytes(machine['memory_bytes'])}",
        ),
        ("GPUs", gpus),
    ]
    settings = [(name, _value(one["value"]), one["why"]) for name, one in sorted(receipt["settings"].items())]
    job = json.dumps(receipt["document"], indent=2, ensure_ascii=False, default=str)
    job = job if len(job) <= _LONGEST else f"{job[:_LONGEST]}\n… the rest is in the receipt"
    return join(
        _facts([(name, value) for name, value in facts if value]),
        tag("h3", "What was chosen, and why"),
        table(("setting", "value", "why"), settings),
        tag("h3", "Versions"),
        table(("package", "version"), sorted(receipt["versions"].items())),
        tag("details", tag("summary", "The job"), tag("pre", job, tabindex="0")),
    )


def _facts(pairs: Sequence[tuple[str, Any]]) -> Html:
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in pairs), class_="facts")


def _short_hash(content: Any) -> str:
    found = content.get("sha256") if isinstance(content, Mapping) else None
    return f"sha256 {found[:16]}" if found else ""


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return figures.count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _bytes(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
