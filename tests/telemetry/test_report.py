"""The report of a run: one page that opens anywhere, shows every chart, and lets nothing foreign in."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from batchinfer.config import load_job
from batchinfer.data import STAGES, ErrorCode
from batchinfer.events import PlanFollowed, StagesTimed, Warned, WorkerExited
from batchinfer.hardware import Gpu, GpuSample
from batchinfer.telemetry.devices import Reading
from batchinfer.telemetry.receipt import as_json, receipt_of
from batchinfer.telemetry.recording import Recording
from batchinfer.telemetry.report import report
from tests.conftest import doubling_job, environment, write_shards

HOSTILE = '</style></title><script>alert(1)</script><img src=x onerror="alert(2)">\'"&\u202e\x1b[31m'
FORECAST = {"low": 1.0, "expected": 70.0, "high": 9000.0, "actual": 80.0}
SECTIONS = {
    "What limits this run",
    "Throughput",
    "GPUs",
    "Batches",
    "Forecast and actual",
    "Failed rows",
    "Workers and units",
    "Warnings",
    "Runs of this output",
    "Made of",
}
_ELEMENTS = """html head meta link title style body header main section footer h1 h2 h3 p span strong code pre dl
dt dd div table thead tbody tr th td ul li i figure figcaption details summary svg rect line polyline polygon"""


class Page(HTMLParser):
    """Reads a page: its texts by element, and all that could run or fetch something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.wrong: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element, and whether it is one of ours."""
        if tag not in _ELEMENTS.split():
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or (name in {"src", "href"} and value != "data:,"):
                self.wrong.append(f"{tag} {name}={value}")
        if tag not in {"meta", "link"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Note its end."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)


def eventful(run: Any, recording: Recording, *, units: int, workers: int, name: str) -> None:
    """Play a run of many units on many GPUs, with a death, failed rows and warnings; files are called `name`."""
    run.hear.append(recording.on_event)
    run.start(rows=units * 100, units=units, workers=workers)
    chosen = {"compute.readers": (3, "as asked"), "compute.devices": ((name,), name)}
    run.say(
        PlanFollowed(
            plan="0123abcd",
            generation=1,
            fingerprint=64 * "a",
            depends_on={"model": {"path": {"sha256": 64 * "b"}}},
            inputs=[(f"/data/{at}/{name}", 10, name) for at in range(units)],
            settings=chosen,
            cores=16,
        )
    )
    for worker in range(workers):
        run.ready(worker, f"cuda:{worker % 8}")
    from tests.telemetry.conftest import row_error

    for unit in range(units):
        worker = unit % workers
        for _ in range(3):
            run.batch(33, worker=worker, seconds=0.001 * (1 + unit % 37), after=0.02)
        seconds = {stage: (unit + 1) * 0.001 * (1 + at) for at, stage in enumerate(STAGES)}
        run.say(StagesTimed(worker=worker, seconds=seconds, peak_bytes=2**30))
        if not unit % 5:
            gpus = [
                Reading(
                    Gpu(index=at, uuid="u", name="NVIDIA L4", memory_total_bytes=24 * 2**30), gpu_sample(unit)
                )
                for at in range(min(workers, 8))
            ]
            recording.sample(gpus)
        failed = row_error(unit, ErrorCode.MODEL, f"{name} {unit % 9}")
        run.commit(99, errors=(failed,) if not unit % 5 else (), worker=worker, unit=unit)
        if unit == units // 2:
            run.say(WorkerExited(worker=worker, code=-9, restarts=True))
            run.ready(worker, "cuda:0")
        run.say(Warned(code="odd", message=name))
    run.finish(
        rows_ok=units * 99, rows_error=units, rows_filtered=0, manifest_sha256=64 * "c", forecast=FORECAST
    )


def gpu_sample(at: int) -> GpuSample:
    """Return a reading; every fifth moment the GPU tells nothing but its energy."""
    if not at % 250:
        return GpuSample(energy_joules=float(at))
    return GpuSample(
        utilization_ratio=0.9, memory_used_bytes=2**34, power_watts=70.0, energy_joules=float(at)
    )


def page_of(run: Any, folder: Path, *, units: int, workers: int, name: str = "a.parquet") -> str:
    """Return the report of such a run."""
    recording = Recording(clock=run.clock, wall_clock=lambda: 1_790_000_000.25)
    eventful(run, recording, units=units, workers=workers, name=name)
    (folder / "in").mkdir(exist_ok=True)
    snapshot = run.tally.snapshot()
    receipt = receipt_of(load_job(doubling_job(folder, description=name)), recording, snapshot)
    assert len(as_json(receipt)) < 200_000
    earlier = {**receipt, "complete": False, "exit_code": 75, "run": name}
    return report(receipt, recording, snapshot, [earlier] * 8)


def test_nothing_foreign_becomes_part_of_the_page(run: Any, tmp_path: Path) -> None:
    """Whatever files, settings and messages are called: the page has our elements, no script, no handler, asks
    nobody for anything, and shows the text as it is."""
    text = page_of(run, tmp_path, units=20, workers=2, name=HOSTILE)
    page = Page(text)
    assert page.wrong == []
    assert set(page.texts["h2"]) == SECTIONS
    assert 'content="default-src &#x27;none&#x27;; style-src' in text
    assert "http" not in text.replace("Content-Security-Policy", "").replace("http-equiv", "")
    cells = "".join(page.texts["td"])
    assert '<script>alert(1)</script><img src=x onerror="alert(2)">' in cells
    assert "It took 1m 20s, inside the range of 1.0 s to 2h 30m; expected were 1m 10s." in page.texts["p"]
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_a_large_run_has_a_small_page(run: Any, tmp_path: Path) -> None:
    """Ten thousand units on sixty-four workers make a page of less than two megabytes, and every chart."""
    text = page_of(run, tmp_path, units=10_000, workers=64)
    assert len(text.encode()) < 2_000_000
    page = Page(text)
    assert page.wrong == []
    assert set(page.texts["h2"]) == SECTIONS
    assert "32 more workers are not shown." in page.texts["p"]


@pytest.fixture
def chromium(require: Callable[[str], str]) -> Iterator[Any]:
    """A browser."""
    path = require("chromium")
    from playwright.sync_api import sync_playwright

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=quiet)
        yield browser
        browser.close()


def ran_and_failed(folder: Path) -> list[Path]:
    """Run a job whose files have hostile names and whose model refuses a row, first over its budget; return both
    reports."""
    write_shards(folder / "in", [300, 1200])
    (folder / "in" / "shard-1.parquet").rename(folder / "in" / "<img src=x onerror=alert(1)>.parquet")
    faults = {"20.0": "error", "250.0": "error"}
    job = doubling_job(folder, model={"faults": faults, "seconds_per_batch": 0.05}, errors={"max": 0})
    for more in ([], ["--set", "errors.max=5%"]):
        command = [sys.executable, "-m", "batchinfer", "run", str(job), *more]
        subprocess.run(command, capture_output=True, env=environment(), timeout=120, check=False)
    pages = (folder / "out" / "_batchinfer" / "runs").glob("*.html")
    return sorted(pages, key=lambda path: path.stat().st_mtime)


SIZES = {"desktop": (1280, 900, "light"), "phone": (390, 844, "light"), "dark": (1280, 900, "dark")}
LOOKED_AT = {"failed": ("dark",), "done": ("desktop", "phone"), "large": ("desktop", "phone")}


def test_it_opens_in_a_browser(tmp_path: Path, run: Any, chromium: Any) -> None:
    """Offline, without a word on the console or a request: charts are drawn, nothing is wider than a phone, and
    it is dark where the system is. With BATCHINFER_SCREENSHOTS set, pictures are left there."""
    failed, done = ran_and_failed(tmp_path)
    large = tmp_path / "large.html"
    large.write_text(page_of(run, tmp_path, units=2000, workers=8, name=HOSTILE))
    grounds = {}
    for page_name, path in {"failed": failed, "done": done, "large": large}.items():
        for name in LOOKED_AT[page_name]:
            width, height, scheme = SIZES[name]
            said: list[str] = []
            context = chromium.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
            )
            page = context.new_page()
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("dialog", lambda dialog, said=said: said.append(dialog.message))
            page.on("request", lambda request, said=said: said.append(request.url))
            page.goto(path.as_uri())
            assert [line for line in said if not line.startswith(("file:", "data:"))] == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            boxes = [box.bounding_box() for box in page.locator("svg").all()]
            assert len(boxes) >= (3 if page_name == "failed" else 5)
            assert all(box["width"] > 100 and box["height"] > 15 for box in boxes)
            assert page.locator("svg [class*=accent], svg .unit").count() > 3
            grounds[name] = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
            if folder := os.environ.get("BATCHINFER_SCREENSHOTS"):
                page.screenshot(path=f"{folder}/{page_name}-{name}.png", full_page=True)
            context.close()
    assert grounds["desktop"] == grounds["phone"] != grounds["dark"]
    assert "stopped · exit code 3" in failed.read_text()
    assert failed.stem in done.read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;.parquet" in failed.read_text()
