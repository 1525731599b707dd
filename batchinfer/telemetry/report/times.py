"""The parts of the report that have a time axis: throughput, what the devices did, and the workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from batchinfer.data import STAGES
from batchinfer.lifeline import died_of
from batchinfer.telemetry import figures
from batchinfer.telemetry.advice import advise, bottleneck
from batchinfer.telemetry.report.charts import HEIGHT, Line, over_time, stacked, table
from batchinfer.telemetry.report.markup import Html, join, tag

if TYPE_CHECKING:
    from batchinfer.telemetry.recording import Lane, Recording
    from batchinfer.telemetry.series import Series
    from batchinfer.telemetry.snapshot import Snapshot

_MOST_LANES = 32
_MOST_STAYS = 1600
_WORDS = {
    "compute": "computing",
    "read": "waiting for reading",
    "decode": "waiting for decoding",
    "pack": "waiting for batches to be packed",
    "transfer": "waiting for transfers",
    "postprocess": "waiting for postprocessing",
    "write": "waiting for encoding",
    "commit": "waiting for the store",
    "launch": "waiting for the launch",
}


def throughput(recording: Recording, snapshot: Snapshot, seconds: float) -> Html:
    """Return rows (and tokens) per second over time."""
    series = recording.series
    parts = [
        over_time(
            "Rows per second",
            [Line("rows", _rates(series, "rows", seconds))],
            width_s=series.width_s,
            seconds=seconds,
            shown="{}/s",
            filled=True,
        )
    ]
    if snapshot.real_tokens:
        parts.append(
            over_time(
                "Tokens per second, without padding",
                [Line("tokens", _rates(series, "tokens", seconds))],
                width_s=series.width_s,
                seconds=seconds,
                shown="{}/s",
                filled=True,
            )
        )
    return join(*parts)


def _rates(series: Series, name: str, seconds: float) -> list[float | None]:
    """Return amounts per second; the last bucket is as long as the run left it."""
    width = series.width_s
    sums = series.sums(name)
    return [total / max(min(width, seconds - at * width), width / 4) for at, total in enumerate(sums)]


def stages(recording: Recording, snapshot: Snapshot, seconds: float) -> Html:
    """Return what the devices did, as a whole and over time, and what limits the run."""
    whole = sum(snapshot.stage_seconds.values())
    worst = bottleneck(snapshot)
    shares = {stage: snapshot.stage_seconds.get(stage, 0.0) / whole for stage in STAGES}
    seen = [stage for stage in STAGES if shares[stage] >= 0.0005]  # noqa: PLR2004 - what shows as 0.1 %
    bar = (
        tag(
            "span",
            title=f"{_WORDS[stage]}: {figures.percent(shares[stage])}",
            class_=_style(stage, worst),
            style=f"flex-grow:{shares[stage] * 1000:.1f}",
        )
        for stage in seen
    )
    rows = [
        (
            join(tag("i", class_=_style(stage, worst)), _WORDS[stage]),
            figures.percent(shares[stage]),
            figures.duration(snapshot.stage_seconds.get(stage, 0.0)),
        )
        for stage in seen
    ]
    lines = [Line(_WORDS[stage], list(recording.series.sums(stage)), _style(stage, worst)) for stage in seen]
    start = None if snapshot.start_s is None else figures.start(snapshot.start_s, snapshot.elapsed_s)
    return join(
        _verdict(snapshot, worst, shares),
        tag("p", f"Until the first worker was ready: {start}.", class_="quiet") if start else None,
        tag("div", *bar, class_="share", role="img", aria_label="Shares of the time of the devices"),
        table(("what the devices did", "share", "time"), rows, class_="numbers"),
        stacked("What the devices did, over time", lines, width_s=recording.series.width_s, seconds=seconds),
    )


def _verdict(snapshot: Snapshot, worst: str | None, shares: Mapping[str, float]) -> Html:
    advice = advise(snapshot)
    if advice:
        found, _, what = advice[0].partition(": ")
        rest = " ".join(_sentence(one) for one in (what, *advice[1:]))
        return tag("p", tag("strong", _sentence(found)), f" {rest}", class_="verdict")
    if worst == "compute":
        busy = figures.percent(shares["compute"])
        said = f"The device is what limits this run: it computed {busy} of its time."
    else:
        said = "The run was too short to say what limits it."
    return tag("p", said, class_="verdict calm")


def _sentence(text: str) -> str:
    """Return a sentence. The name of a setting stays as it is written."""
    is_name = "." in text.partition(" ")[0]
    return f"{text if is_name else text[0].upper() + text[1:]}."


def _style(stage: str, worst: str | None) -> str:
    if stage == "compute":
        return "accent"
    return "worst" if stage == worst else f"n{STAGES.index(stage)}"


def devices(recording: Recording, seconds: float) -> Html | None:
    """Return utilization, memory and power of the GPUs over time; None where no GPU told."""
    if not recording.gpus:
        return None
    gauges, found = recording.gauges, []
    totals = [one.gpu.memory_total_bytes or 0 for one in recording.gpus.values()]
    for what, title, shown, scale, top in (
        ("utilization", "Utilization: share of time with a kernel running", "%", 1.0, 1.0),
        ("memory", "Device memory in use, GiB", "{} GiB", 2.0**30, max(totals) / 2**30 or None),
        ("power", "Power, watts", "{} W", 1.0, None),
    ):
        lines = []
        for at, index in enumerate(sorted(recording.gpus)):
            values = [value if value is None else value / scale for value in gauges.means(f"{index} {what}")]
            if any(value is not None for value in values):
                lines.append(Line(f"GPU {index}", values, f"g{at % 8}"))
        if lines:
            found.append(
                over_time(title, lines, width_s=gauges.width_s, seconds=seconds, shown=shown, top=top)
            )
    names = ", ".join(dict.fromkeys(one.gpu.name for one in recording.gpus.values()))
    return join(tag("p", names, class_="quiet"), *found) if found else None


def workers(recording: Recording, snapshot: Snapshot, seconds: float) -> Html:
    """Return who did what when: a lane for each worker, with its units, its deaths and its starts."""
    lanes = [lane for _, lane in sorted(recording.lanes.items())]
    shown = lanes[:_MOST_LANES]
    most = max(10, _MOST_STAYS // max(len(shown), 1))
    drawn = tag("div", *(_lane(lane, seconds, most) for lane in shown), _axis(seconds), class_="lanes")
    rows = []
    states = {worker.index: worker for worker in snapshot.workers}
    for lane in shown:
        state = states.get(lane.index)
        if state is None:
            continue
        died = ", ".join(_deaths(lane)) or "–"
        rows.append(
            (
                lane.index,
                lane.device or "never ready",
                figures.count(state.units_committed),
                figures.count(state.num_samples),
                figures.percent(state.mean_busy_ratio),
                figures.duration(state.load_s),
                f"{figures.gib(state.peak_bytes)} GiB",
                died,
            )
        )
    head = ("worker", "device", "units", "rows", "busy", "start", "memory", "died")
    more = f"{len(lanes) - len(shown)} more workers are not shown." if len(lanes) > len(shown) else None
    return join(drawn, table(head, rows, class_="numbers"), tag("p", more, class_="quiet") if more else None)


def _deaths(lane: Lane) -> Iterator[str]:
    for _, gone, code in lane.lives:
        if gone is not None and code:
            yield f"{died_of(int(code))} after {figures.duration(gone)}"


def _lane(lane: Lane, seconds: float, most: int) -> Html:
    """Draw one worker: where it lived, the units that it committed, and where it died."""
    end = max(seconds, 1e-9)
    drawn, deaths = [], []
    for ready, gone, code in lane.lives:
        begin, stop = ready or 0.0, end if gone is None else gone
        drawn.append(_block("life", begin, stop, end, f"worker {lane.index} on {lane.device}"))
        if code:
            said = f"died ({died_of(int(code))}) after {figures.duration(stop)}"
            deaths.append(_block("death", stop, stop, end, said))
    stays, step = lane.stays, max(1, -(-len(lane.stays) // most))
    for at in range(0, len(stays), step):
        some = stays[at : at + step]
        first, last = min(stay.first for stay in some), max(stay.last for stay in some)
        number = sum(stay.num_units for stay in some)
        which = f"unit {first}" if number == 1 else f"{number} units of {first} to {last}"
        said = (
            f"{which}: {figures.count(sum(stay.num_rows for stay in some))} rows, committed from "
            f"{figures.duration(some[0].began)} to {figures.duration(some[-1].ended)}"
        )
        style = "unit" if at // step % 2 else "unit odd"
        drawn.append(_block(style, some[0].began, some[-1].ended, end, said))
    title = f"worker {lane.index}: {sum(stay.num_units for stay in stays)} units"
    svg = tag(
        "svg",
        tag("title", title),
        *drawn,
        *deaths,
        view_box=f"0 0 1000 {HEIGHT:g}",
        preserve="none",
        role="img",
    )
    return tag("div", tag("span", lane.index, class_="who"), svg, class_="lane")


def _block(style: str, began: float, ended: float, end: float, said: str) -> Html:
    x, stop = 1000 * began / end, 1000 * min(ended, end) / end
    width = 4.0 if style == "death" else max(stop - x, 0.8)
    return tag(
        "rect",
        tag("title", said),
        x=f"{min(x, 996.0):.1f}",
        y=0,
        width=f"{width:.1f}",
        height=f"{HEIGHT:g}",
        class_=style,
    )


def _axis(seconds: float) -> Html:
    times = (0.0, seconds / 2, seconds)
    marks = (tag("span", figures.duration(time) if time else "0") for time in times)
    return tag("div", tag("span", "", class_="who"), tag("div", *marks, class_="x"), class_="lane axis")
