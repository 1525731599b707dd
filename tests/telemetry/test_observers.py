"""Which observers a run gets, and what they cost."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from typing import Any

import pytest

from batchinfer.config.observe import PushgatewayOptions
from batchinfer.config.sections import ObserveOptions
from batchinfer.telemetry import make_observers
from batchinfer.telemetry.ticker import Ticker


def names(**more: Any) -> list[str]:
    settings = {"job": "embed", "interactive": False, "log_format": "text", "stream": io.StringIO(), **more}
    return [
        type(observer).__name__
        for observer in make_observers(settings.pop("observe", ObserveOptions()), **settings)
    ]


def test_a_terminal_gets_the_live_display() -> None:
    """On a terminal there is a display, elsewhere there are lines; the tally hears everything first."""
    assert names(interactive=True) == ["Devices", "Tally", "LiveProgress"]
    assert names() == ["Devices", "Tally", "LineProgress"]


def test_json_is_never_drawn_over() -> None:
    """Who asks for JSON gets lines of it, on a terminal too."""
    assert names(interactive=True, log_format="json") == ["Devices", "Tally", "LineProgress"]


def test_the_display_has_the_last_word() -> None:
    """Metrics are pushed for the last time before the display closes, and may still warn."""
    observe = ObserveOptions(pushgateway=PushgatewayOptions(url="http://127.0.0.1:1"))
    assert names(observe=observe) == [
        "Devices",
        "Tally",
        "RunMetrics",
        "LastRun",
        "Pushgateway",
        "LineProgress",
    ]


def test_a_run_from_end_to_end(run: Any) -> None:
    """The observers of a run, told everything, write what happened to the stream."""
    stream = io.StringIO()
    observers = make_observers(
        ObserveOptions(), job="embed", interactive=False, log_format="json", stream=stream
    )
    run.hear = [observer.on_event for observer in observers]
    run.start(rows=100, units=1)
    run.ready()
    run.commit(100)
    run.finish(rows_ok=100, rows_error=0, rows_filtered=0)
    for observer in observers:
        observer.close()
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert events == ["run_started", "worker_ready", "progress", "run_finished"]


def test_closing_twice_changes_nothing(run: Any) -> None:
    """An observer may be closed again, and says nothing twice."""
    stream = io.StringIO()
    *_, display = make_observers(
        ObserveOptions(), job="embed", interactive=False, log_format="text", stream=stream
    )
    display.close()
    display.close()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("interactive", ["True", "False"])
def test_only_what_is_used_is_imported(interactive: str) -> None:
    """Without a gateway there is no Prometheus client, without a GPU no NVML, and never a model library."""
    program = (
        "import sys, io\n"
        "import batchinfer.telemetry\n"
        "assert not {'rich', 'prometheus_client', 'pynvml'} & sys.modules.keys()\n"
        "from batchinfer.config.sections import ObserveOptions\n"
        "batchinfer.telemetry.make_observers(ObserveOptions(), job='j', log_format='text', stream=io.StringIO(),"
        f" interactive={interactive})\n"
        "print(sorted({'prometheus_client', 'pynvml', 'torch', 'pyarrow'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_ticker_ticks_at_once_and_at_the_end() -> None:
    """However long its interval, what a ticker does is done when it starts and when it stops."""
    ticks: list[bool] = []
    started = threading.Event()

    def tick(last: bool) -> None:
        ticks.append(last)
        started.set()

    ticker = Ticker(tick, every_s=600.0, name="t")
    ticker.start()
    ticker.start()
    assert started.wait(10)
    assert ticker.stop(10)
    assert ticks == [False, True]


def test_a_ticker_that_is_stuck_is_left_alone() -> None:
    """Stopping waits no longer than it was told, and says that the work is not done."""
    release, entered = threading.Event(), threading.Event()

    def tick(last: bool) -> None:
        entered.set()
        release.wait(30)

    ticker = Ticker(tick, every_s=600.0, name="t")
    ticker.start()
    assert entered.wait(10)
    assert not ticker.stop(0.01)
    release.set()
    assert ticker.stop(10)


def test_a_ticker_that_never_started_has_nothing_to_finish() -> None:
    """Stopping what never began does nothing."""
    ticks: list[bool] = []
    assert Ticker(ticks.append, every_s=600.0, name="t").stop(10)
    assert ticks == []
