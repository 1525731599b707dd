"""The report of a run as one page: opens offline, holds no script, and asks nobody for anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchinfer.telemetry.report import sections, times
from batchinfer.telemetry.report.markup import Html, join, tag

if TYPE_CHECKING:
    from batchinfer.telemetry.recording import Recording
    from batchinfer.telemetry.snapshot import Snapshot

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Whatever got into the page: nothing of it runs, and nothing is fetched."""


def report(
    receipt: Mapping[str, Any],
    recording: Recording,
    snapshot: Snapshot,
    earlier: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the page. `earlier` are the receipts of runs before this one, the oldest first."""
    seconds = max(receipt["seconds"], 1e-3)
    parts: list[tuple[str, Html | None]] = []
    if snapshot.stage_seconds and any(snapshot.stage_seconds.values()):
        parts.append(("What limits this run", times.stages(recording, snapshot, seconds)))
    if snapshot.num_batches:
        parts += [
            ("Throughput", times.throughput(recording, snapshot, seconds)),
            ("GPUs", times.devices(recording, seconds)),
            ("Batches", sections.batches(recording, snapshot)),
        ]
    parts += [
        ("Forecast and actual", sections.forecast(receipt)),
        ("Failed rows", sections.errors(receipt)),
        ("Workers and units", times.workers(recording, snapshot, seconds) if recording.lanes else None),
        ("Warnings", sections.notes(receipt)),
        ("Runs of this output", sections.history(earlier, receipt)),
        ("Made of", sections.made_of(receipt)),
    ]
    shown = [_section(title, content) for title, content in parts if content]
    body = join(
        _header(receipt),
        tag("main", sections.headline(receipt, snapshot), *shown),
        _footer(receipt),
    )
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{receipt['job']} · run {receipt['run']}"),
        Html(f"<style>{_css()}</style>"),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


def _css() -> str:
    return Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def _header(receipt: Mapping[str, Any]) -> Html:
    style, words = _outcome(receipt)
    error = tag("pre", receipt["error"], class_="error", tabindex="0") if receipt["error"] else None
    return tag(
        "header",
        tag("p", tag("span", words, class_=f"pill {style}"), class_="state"),
        tag("h1", receipt["job"]),
        tag(
            "p",
            f"run {receipt['run']} · {_when(receipt['started_at'])} UTC · {receipt['machine']['host']}",
            class_="quiet",
        ),
        error,
    )


def _when(time: str) -> str:
    return time.replace("T", " ")[:19]


def _outcome(receipt: Mapping[str, Any]) -> tuple[str, str]:
    if not receipt["complete"] and not receipt["exit_code"]:
        return "good", "done with its share"
    if receipt["exit_code"]:
        return "bad", f"stopped · exit code {receipt['exit_code']}"
    failed = (receipt["output_rows"] or receipt["rows"])["error"]
    return ("fair", "done · with failed rows, within the budget") if failed else ("good", "done")


def _section(title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content)


def _footer(receipt: Mapping[str, Any]) -> Html:
    return tag(
        "footer",
        f"batchinfer {receipt['versions'].get('batchinfer-pipeline', '')} · the same figures, for programs: ",
        tag("code", f"_batchinfer/runs/{receipt['run']}.json"),
    )
