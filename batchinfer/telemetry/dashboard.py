"""A Grafana dashboard over a run's metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
_SCHEMA = 39
_HERE = '{job="$job", instance=~"$instance"}'
_JOB = '{job="$job"}'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: `lines` are PromQL with the text of their legend."""

    title: str
    lines: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    text: str = ""


def _stat(title: str, expr: str, unit: str = "short", text: str = "") -> Panel:
    return Panel(title, ((expr, ""),), unit, "stat", width=4, height=4, text=text)


def _rate(name: str, label: str = "") -> str:
    chosen = f"{_HERE[:-1]}, {label}}}" if label else _HERE
    return f"rate(batchinfer_{name}{chosen}[$__rate_interval])"


def _ratio(part: str, whole: str) -> str:
    return f"sum({part}) / sum({whole})"


def _share_of_rows(outcome: str, of: str) -> str:
    begin = f"batchinfer_rows_total{_HERE[:-1]}, outcome"
    return _ratio(f'{begin}="{outcome}"}}', f'{begin}=~"{of}"}}')


def _quantile(share: float) -> str:
    return f"histogram_quantile({share}, sum by (le) ({_rate('batch_seconds_bucket')}))"


_ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            _stat(
                "Progress",
                _ratio(f"batchinfer_rows_total{_HERE}", f"batchinfer_rows_planned{_HERE}"),
                "percentunit",
                "Of the rows that were left when the processes began.",
            ),
            _stat("Time left", f"max(batchinfer_eta_seconds{_HERE})", "s"),
            _stat("Rows per second", f"sum(batchinfer_samples_per_second{_HERE})"),
            _stat("Failed rows", _share_of_rows("error", "ok|error"), "percentunit"),
            _stat(
                "Last success",
                f"time() - max(batchinfer_last_success_timestamp_seconds{_JOB})",
                "s",
                "How long ago a run of the job was complete.",
            ),
            _stat("Last exit code", f"max(batchinfer_last_run_exit_code{_JOB})", "none"),
        ),
    ),
    (
        "Throughput",
        (
            Panel(
                "Rows per second", ((f"batchinfer_samples_per_second{_HERE}", "{{instance}}"),), stacked=True
            ),
            Panel(
                "Tokens per second",
                ((f"batchinfer_tokens_per_second{_HERE}", "{{instance}}"),),
                stacked=True,
                text="Padding left out.",
            ),
            Panel(
                "Rows committed",
                ((f"sum by (outcome) (batchinfer_rows_total{_HERE})", "{{outcome}}"),),
                stacked=True,
            ),
        ),
    ),
    (
        "Where the time goes",
        (
            Panel(
                "Devices by stage",
                ((f"sum by (stage) ({_rate('stage_seconds_total')})", "{{stage}}"),),
                stacked=True,
                text="Devices that compute, or wait for the stage.",
            ),
            Panel(
                "Share of time that devices wait",
                ((f"batchinfer_device_idle_ratio{_HERE}", "{{instance}}"),),
                "percentunit",
            ),
            Panel(
                "Bytes in queues",
                ((f"sum by (queue) (batchinfer_queue_bytes{_HERE})", "{{queue}}"),),
                "bytes",
            ),
            Panel("Seconds of a batch", ((_quantile(0.5), "half"), (_quantile(0.95), "95 %")), "s"),
            Panel(
                "Rows of a batch, on average",
                ((_ratio(_rate("batch_rows_sum"), _rate("batch_rows_count")), "rows"),),
            ),
            Panel(
                "Padding among the computed tokens",
                ((_ratio(_rate("tokens_total", 'kind="padding"'), _rate("tokens_total")), "padding"),),
                "percentunit",
            ),
        ),
    ),
    (
        "What goes wrong",
        (
            Panel(
                "Failed rows by code",
                ((f"sum by (code) (batchinfer_errors_total{_HERE})", "{{code}}"),),
                stacked=True,
            ),
            Panel(
                "Workers",
                (
                    (f"sum by (state) (batchinfer_workers{_HERE})", "{{state}}"),
                    (f"sum(batchinfer_worker_restarts_total{_HERE})", "restarts so far"),
                    (f"sum(batchinfer_batch_splits_total{_HERE})", "batches in pieces so far"),
                ),
            ),
            Panel(
                "Calls made again, by why they had failed",
                ((f"sum by (reason) (batchinfer_retries_total{_HERE})", "{{reason}}"),),
                stacked=True,
            ),
            Panel(
                "Units",
                ((f"sum by (state) (batchinfer_units{_HERE})", "{{state}}"),),
                stacked=True,
            ),
            Panel(
                "Seconds since the last progress",
                ((f"time() - batchinfer_last_progress_timestamp_seconds{_HERE}", "{{instance}}"),),
                "s",
            ),
        ),
    ),
    (
        "GPUs",
        (
            Panel(
                "Utilization",
                ((f"batchinfer_gpu_utilization_ratio{_HERE}", "{{instance}} {{gpu}}"),),
                "percentunit",
            ),
            Panel(
                "Memory in use",
                (
                    (
                        f"batchinfer_gpu_memory_used_bytes{_HERE} / batchinfer_gpu_memory_total_bytes{_HERE}",
                        "{{instance}} {{gpu}}",
                    ),
                ),
                "percentunit",
            ),
            Panel("Power", ((f"batchinfer_gpu_power_watts{_HERE}", "{{instance}} {{gpu}}"),), "watt"),
            Panel(
                "Temperature",
                ((f"batchinfer_gpu_temperature_celsius{_HERE}", "{{instance}} {{gpu}}"),),
                "celsius",
            ),
            Panel(
                "Slowed down",
                (
                    (
                        f"batchinfer_gpu_clock_throttled{_HERE} == 1",
                        "{{instance}} {{gpu}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "Cost so far",
                ((f"batchinfer_cost_total{_HERE}", "{{instance}}"),),
                text="In the currency of limits.price_per_device_hour.",
            ),
        ),
    ),
)


def dashboard(job: str | None) -> dict[str, Any]:
    """Return a dashboard for one job, or for whichever job is chosen in it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in _ROWS:
        place = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []})
        top = _fill(panels, row, top + 1)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": _uid(job),
        "title": f"batchinfer: {job}" if job else "batchinfer",
        "description": "Written by `batchinfer export grafana`.",
        "tags": ["batchinfer"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables(job)},
        "panels": panels,
    }


def as_json(found: dict[str, Any]) -> str:
    """Return a dashboard as the text of a file."""
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def _uid(job: str | None) -> str:
    """Return what Grafana knows it by: at most 40 letters, digits, `-` and `_`."""
    return "batchinfer" + (f"-{re.sub('[^A-Za-z0-9_-]', '_', job)}"[:30] if job else "")


def _fill(panels: list[dict[str, Any]], row: Sequence[Panel], top: int) -> int:
    """Place panels side by side and below each other; return where the next row begins."""
    left = height = 0
    for panel in row:
        if left + panel.width > _COLUMNS:
            top, left, height = top + height, 0, 0
        place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
        panels.append(_drawn(panel, place))
        left, height = left + panel.width, max(height, panel.height)
    return top + height


def _drawn(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom = {"fillOpacity": 20, "stacking": {"mode": "normal"}} if panel.stacked else {"fillOpacity": 5}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {**defaults, "custom": custom} if panel.kind == "timeseries" else defaults,
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": expr,
                "legendFormat": legend or "__auto",
                "instant": panel.kind == "stat",
                "range": panel.kind != "stat",
            }
            for number, (expr, legend) in enumerate(panel.lines)
        ],
    }


def _variables(job: str | None) -> list[dict[str, Any]]:
    def asked(name: str, query: str, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "type": "query",
            "datasource": _SOURCE,
            "query": query,
            "refresh": 2,
            "sort": 1,
            **more,
        }

    names = '{__name__=~"batchinfer_running|batchinfer_last_run_exit_code"}'
    chosen = {
        "type": "constant",
        "name": "job",
        "query": job,
        "hide": 2,
        "current": {"text": job, "value": job},
    }
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"},
        chosen if job else asked("job", f"label_values({names}, job)"),
        asked(
            "instance",
            f"label_values(batchinfer_running{_JOB}, instance)",
            multi=True,
            includeAll=True,
            allValue=".*",
            current={"text": "All", "value": "$__all"},
        ),
    ]
