"""Alerting rules for Prometheus over a run's metrics, each with the command that tells more."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86_400.0
_SILENT_S = 5 * _MINUTE_S
_HEAD = """\
# Written by `batchinfer export alerts`. Rules for Prometheus: name this file in its `rule_files`.
# Metrics come through a Pushgateway that is scraped with `honor_labels: true`, or from `observe.listen`.
groups:
  - name: {name}
    rules:
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When to alert. Times in seconds, the others as shares of one.

    `hold_s` takes the place of every rule's own time for which its condition must hold.
    """

    stalled_s: float = 10 * _MINUTE_S
    no_success_s: float = 26 * _HOUR_S
    failing: float = 0.01
    waiting: float = 0.5
    hold_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A series that the rules after it use. `expr` is PromQL, `why` says what it is there for."""

    name: str
    expr: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert. `expr` is PromQL, whose value the `summary` may show; `action` says what to do."""

    name: str
    expr: str
    for_s: float
    severity: str
    summary: str
    action: str


def alert_rules(job: str | None, thresholds: Thresholds) -> list[Record | Alert]:
    """Return the rules for one job, or for every job, in the order in which they are judged."""
    return list(_Rules(job, thresholds))


def as_yaml(rules: list[Record | Alert], *, job: str | None, thresholds: Thresholds) -> str:
    """Return rules as a rule file."""
    text = _HEAD.format(name=json.dumps(f"batchinfer {job}") if job else "batchinfer")
    for rule in rules:
        if isinstance(rule, Record):
            text += f"      # {rule.why}\n      - record: {rule.name}\n{_expr(rule.expr)}"
            continue
        for_s = rule.for_s if thresholds.hold_s is None else thresholds.hold_s
        text += f"      - alert: {rule.name}\n{_expr(rule.expr)}"
        text += f"        for: {duration(for_s)}\n" if for_s else ""
        text += f"        labels: {{severity: {rule.severity}}}\n        annotations:\n"
        text += f"          summary: {json.dumps(rule.summary, ensure_ascii=False)}\n"
        text += f"          description: {json.dumps(rule.action, ensure_ascii=False)}\n"
    return text


def _expr(promql: str) -> str:
    return "        expr: |-\n" + textwrap.indent(textwrap.dedent(promql).strip(), " " * 10) + "\n"


def duration(seconds: float) -> str:
    """Return seconds as Prometheus writes them: `1d`, `10m`, `90s`, `500ms`."""
    for unit, size in (("d", _DAY_S), ("h", _HOUR_S), ("m", _MINUTE_S), ("s", 1.0)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms"


class _Rules:
    """The rules over the metrics of one job, or of all."""

    def __init__(self, job: str | None, thresholds: Thresholds) -> None:
        self._job = job
        self._thresholds = thresholds
        self._only = f"job={json.dumps(job)}" if job else ""
        self._here = f"{{{self._only}}}" if job else ""
        self._live = f"and on (job, instance) batchinfer:live{self._here}"

    def __iter__(self) -> Iterator[Record | Alert]:
        yield from self._of_a_process()
        yield from self._of_a_run()
        yield from self._of_its_end()
        yield from self._of_its_devices()

    def _of_a_process(self) -> Iterator[Record]:
        """Yield which processes are at work. A Pushgateway keeps what one pushed before it was killed."""
        here = self._here
        yield Record(
            name="batchinfer:unfinished",
            expr=f"""
                batchinfer_running{here} == 1
                unless on (job, instance)
                  batchinfer_last_progress_timestamp_seconds{here}
                    < on (job) group_left () max by (job) (batchinfer_last_success_timestamp_seconds{here})
            """,
            why="Processes that told no end, of a job that was not completed since they got on.",
        )
        yield Record(
            name="batchinfer:live",
            expr=f"""
                batchinfer:unfinished{here}
                unless on (job, instance)
                  time() - max by (job, instance) (push_time_seconds{here}) > {_SILENT_S:g}
            """,
            why="Those that still push, or are scraped themselves.",
        )

    def _of_a_run(self) -> Iterator[Alert]:
        """Yield what is amiss while a run goes on."""
        here, live, thresholds = self._here, self._live, self._thresholds
        yield Alert(
            name="BatchinferStalled",
            expr=f"""
                time() - batchinfer_last_progress_timestamp_seconds{here} > {thresholds.stalled_s:g}
                and on (job, instance) batchinfer:unfinished{here}
            """,
            for_s=_MINUTE_S,
            severity="critical",
            summary="{{ $labels.job }} on {{ $labels.instance }} has finished no batch for "
            "{{ $value | humanizeDuration }}",
            action="The process hangs, waits for its store or its model, or is gone without a word. "
            "`batchinfer status OUTPUT` shows from any machine what is committed and who is at work; the "
            "log's last lines say where a worker stood. Start it again with `batchinfer run JOB`: what is "
            "committed stays.",
        )
        yield Alert(
            name="BatchinferFailingRows",
            expr=f"""
                {self._rows('="error"')}
                  / {self._rows('=~"ok|error"')}
                  > {thresholds.failing:g}
            """,
            for_s=_MINUTE_S,
            severity="warning",
            summary="{{ $value | humanizePercentage }} of the rows of {{ $labels.job }} fail",
            action="`batchinfer errors OUTPUT` counts them by code and stage and shows some. Beyond "
            "`errors.max` the run ends with exit code 3.",
        )
        yield Alert(
            name="BatchinferDeadlineInDanger",
            expr=f"""
                time() + batchinfer_eta_seconds{here}
                  - batchinfer_deadline_timestamp_seconds{here}
                  > 0
                {live}
            """,
            for_s=5 * _MINUTE_S,
            severity="warning",
            summary="{{ $labels.job }} on {{ $labels.instance }} would end "
            "{{ $value | humanizeDuration }} after its deadline",
            action="It will stop there with exit code 75, and `batchinfer run JOB` goes on later. More "
            "processes help at once: `batchinfer run JOB --shard i/n`, or more pods.",
        )

    def _of_its_end(self) -> Iterator[Alert]:
        """Yield what is amiss after a run, or where there is none."""
        here, thresholds = self._here, self._thresholds
        exit_code = f"max by (job) (batchinfer_last_run_exit_code{here})"
        yield Alert(
            name="BatchinferRunFailed",
            expr=f"""
                {exit_code} != 0
                and {exit_code} != 75
                unless on (job) batchinfer:live{here}
            """,
            for_s=0.0,
            severity="critical",
            summary="the last run of {{ $labels.job }} ended with exit code {{ $value }}",
            action="The README tables the exit codes, and the log ends with what went wrong and the way out. "
            "`batchinfer status OUTPUT` shows what is committed; `batchinfer run JOB` goes on from there.",
        )
        success = f"max by (job) (batchinfer_last_success_timestamp_seconds{here})"
        never = (
            f"\n            or absent(batchinfer_last_success_timestamp_seconds{here})" if self._job else ""
        )
        yield Alert(
            name="BatchinferNoSuccess",
            expr=f"""
                time() - {success} > {thresholds.no_success_s:g}{never}
            """,
            for_s=_MINUTE_S,
            severity="critical",
            summary="{{ $labels.job }} has not been complete for longer than "
            + (duration(thresholds.no_success_s)),
            action="See whether it was started at all (the schedule, the queue, the image), then "
            "`batchinfer status OUTPUT` and `batchinfer run JOB`.",
        )

    def _of_its_devices(self) -> Iterator[Alert]:
        """Yield what is amiss with devices."""
        here, live, thresholds = self._here, self._live, self._thresholds
        yield Alert(
            name="BatchinferDeviceWaiting",
            expr=f"batchinfer_device_idle_ratio{here} > {thresholds.waiting:g} {live}",
            for_s=15 * _MINUTE_S,
            severity="warning",
            summary="the devices of {{ $labels.job }} on {{ $labels.instance }} compute only "
            "part of the time: they wait {{ $value | humanizePercentage }} of it",
            action="`batchinfer_stage_seconds_total` by `stage` says for what; docs/performance.md says what "
            "helps against each. `batchinfer run JOB --measure` compares with the model alone.",
        )
        yield Alert(
            name="BatchinferDeviceThrottled",
            expr=f"""
                max by (job, instance, gpu, reason) (batchinfer_gpu_clock_throttled{here} {live}) == 1
            """,
            for_s=10 * _MINUTE_S,
            severity="warning",
            summary="GPU {{ $labels.gpu }} of {{ $labels.instance }} is slowed down: {{ $labels.reason }}",
            action="Look after its power and its cooling: `nvidia-smi -q -d PERFORMANCE,TEMPERATURE,POWER`. "
            "`batchinfer doctor` shows what the machine has.",
        )
        # Of those that have ended too: it may be why they did, and what stays in a gateway does not grow.
        yield Alert(
            name="BatchinferDeviceSick",
            expr=f"""
                increase(batchinfer_worker_restarts_total{here}[15m]) > 0
                or increase(batchinfer_gpu_ecc_errors_total{here}[15m]) > 0
                or increase(batchinfer_gpu_xid_errors_total{here}[15m]) > 0
            """,
            for_s=0.0,
            severity="warning",
            summary="a worker of {{ $labels.job }} on {{ $labels.instance }} died, "
            "or its GPU reported errors",
            action="The log says how the worker ended (`worker_died`). `batchinfer doctor` shows whether the "
            "devices answer; rows that kill a worker are found and recorded: `batchinfer errors OUTPUT`.",
        )

    def _rows(self, outcome: str) -> str:
        labels = ",".join(part for part in (self._only, f"outcome{outcome}") if part)
        return f"sum by (job) (batchinfer_rows_total{{{labels}}} {self._live})"
