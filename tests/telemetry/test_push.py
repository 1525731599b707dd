"""Pushing to a real Pushgateway, and to servers that are gone, mute, wrong or endless."""

from __future__ import annotations

import base64
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchinfer.config.observe import PushgatewayOptions
from batchinfer.config.sections import ObserveOptions
from batchinfer.errors import JobFileError
from batchinfer.events import RunFailed, RunFinished
from batchinfer.telemetry import make_observers
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.last_run import LastRun
from batchinfer.telemetry.metrics import RunMetrics
from batchinfer.telemetry.push import Pushgateway
from tests.telemetry.bad_gateways import (
    broken,
    dripping,
    endless,
    failing,
    hear,
    lying,
    mute,
    redirecting,
    rubbish,
    server,
)

READY_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """Start the real thing when it is first asked for; return its URL."""
    started: list[tuple[subprocess.Popen[bytes], str]] = []

    def start() -> str:
        if not started:
            url = f"http://127.0.0.1:{free_port()}"
            log = tmp_path_factory.mktemp("gateway") / "log"
            started.append((launch(url, log), url))
            wait_for(url)
        return started[0][1]

    yield start
    for process, _ in started:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)


def launch(url: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [
                "prometheus-pushgateway",
                f"--web.listen-address={url.removeprefix('http://')}",
                "--persistence.file=",
            ],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def wait_for(url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=1):
            return
        time.sleep(0.02)
    pytest.fail("the gateway did not start")


@pytest.fixture
def real(gateway: Callable[[], str], require: Callable[[str], str]) -> str:
    """The URL of a real gateway."""
    require("prometheus-pushgateway")
    return gateway()


def series(url: str, job: str, instance: str) -> dict[str, float]:
    """Return what a gateway holds of one group, by name and the labels that are not the group's."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if (labels.pop("job", None), labels.pop("instance", None)) == (job, instance):
                rest = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
                found[f"{sample.name}{{{rest}}}" if rest else sample.name] = sample.value
    return found


class Pushed:
    """A run that pushes, with the warnings that it caused."""

    def __init__(self, run: Any, url: str, *, job: str = "embed", **more: Any) -> None:
        self.warnings: list[str] = []
        index = more.pop("index", None)
        settings = {"instance": "pod-0", "every": 600.0, "timeout": 0.5, **more}
        metrics = RunMetrics(run.tally, Devices(gpus=tuple), wall_clock=lambda: 1.79e9)
        last_run = LastRun(run.tally, wall_clock=lambda: 1.79e9)
        self.observer = Pushgateway(
            PushgatewayOptions(url=url, **settings),
            job=job,
            metrics=metrics,
            last_run=last_run,
            warn=self.warnings.append,
            index=index,
        )
        run.hear += [metrics.on_event, last_run.on_event, self.observer.on_event]


def test_a_run_is_in_the_gateway(real: str, run: Any) -> None:
    """After the end, the job's own group holds what the run came to and no more, and that of the run is gone."""
    pushed = Pushed(run, real, timeout=5.0)
    run.start(rows=100, units=1)
    run.ready()
    run.batch(98, after=2)
    run.commit(98, filtered=2)
    run.finish()
    pushed.observer.close()
    held = series(real, "embed", "")
    assert series(real, "embed", "pod-0") == {}
    del held["push_time_seconds"], held["push_failure_time_seconds"]
    assert held == {
        "batchinfer_last_run_rows{outcome=ok}": 98,
        "batchinfer_last_run_rows{outcome=error}": 0,
        "batchinfer_last_run_rows{outcome=filtered}": 2,
        "batchinfer_last_run_duration_seconds": 2,
        "batchinfer_last_run_exit_code": 0,
        "batchinfer_last_run_timestamp_seconds": 1.79e9,
        "batchinfer_last_success_timestamp_seconds": 1.79e9,
    }
    assert pushed.warnings == []


def test_figures_are_pushed_while_it_runs(real: str, run: Any) -> None:
    """The first push is made when the run begins, and others follow at the interval."""
    pushed = Pushed(run, real, job="running", every=0.05, timeout=5.0)
    run.start(rows=100, units=2)
    run.ready()
    run.commit(10)
    deadline = time.monotonic() + READY_S
    while series(real, "running", "pod-0").get("batchinfer_rows_total{outcome=ok}") != 10:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pushed.observer.close()


def test_the_time_of_the_last_success_outlives_a_failure(real: str, new_run: Callable[[], Any]) -> None:
    """A run that fails leaves its figures for whoever looks into it, and says so in the group of the job, where
    the time of the last success stays."""
    for exit_code in (0, 3):
        run = new_run()
        pushed = Pushed(run, real, job="twice", timeout=5.0)
        run.start(rows=100, units=1)
        run.ready()
        run.commit(100 if exit_code == 0 else 40)
        run.finish(exit_code=exit_code)
        pushed.observer.close()
    failed, succeeded = series(real, "twice", "pod-0"), series(real, "twice", "")
    assert failed["batchinfer_rows_total{outcome=ok}"] == 40
    assert "batchinfer_last_success_timestamp_seconds" not in failed
    assert failed["batchinfer_running"] == 0
    assert succeeded["batchinfer_last_run_rows{outcome=ok}"] == 40
    assert succeeded["batchinfer_last_run_exit_code"] == 3
    assert succeeded["batchinfer_last_success_timestamp_seconds"] == 1.79e9


def test_a_share_that_is_done_leaves_nothing(real: str, run: Any) -> None:
    """Of a process whose share is done, while others work on, no group stays, and it is no success yet."""
    pushed = Pushed(run, real, job="shared", timeout=5.0)
    run.start(rows=100, units=2)
    run.ready()
    run.commit(50)
    run.say(RunFinished(exit_code=0, seconds=1.0, complete=False))
    pushed.observer.close()
    assert pushed.warnings == []
    assert series(real, "shared", "pod-0") == series(real, "shared", "") == {}


def test_instances_do_not_disturb_each_other(real: str, new_run: Callable[[], Any]) -> None:
    """Two pods of one job have a group each, also with names that need escaping."""
    for instance in ("pod/0", "pod 1"):
        run = new_run()
        pushed = Pushed(run, real, job="indexed", instance=instance, timeout=5.0)
        run.start(rows=100, units=1)
        run.ready()
        run.commit(len(instance) + instance.count("/"))
        run.finish(exit_code=3)
        pushed.observer.close()
        assert pushed.warnings == []
    assert series(real, "indexed", "pod/0")["batchinfer_rows_total{outcome=ok}"] == 6
    assert series(real, "indexed", "pod 1")["batchinfer_rows_total{outcome=ok}"] == 5


def test_the_instance_is_the_host_by_default(real: str, run: Any) -> None:
    """Without a name of its own, an instance is called like its host."""
    pushed = Pushed(run, real, job="hosted", instance=None, timeout=5.0)
    run.start()
    pushed.observer.close()
    assert series(real, "hosted", socket.gethostname())


def test_the_instance_is_the_index_where_there_is_one(real: str, run: Any) -> None:
    """Processes that share a job have a group each, the same one in every run, wherever they run."""
    pushed = Pushed(run, real, job="sharing", instance=None, index=3)
    run.start()
    pushed.observer.close()
    assert series(real, "sharing", "index-3")


def whole_run(run: Any, pushed: Pushed) -> float:
    """Run to the end, and return how long the run was held up."""
    began = time.monotonic()
    run.start(rows=100, units=1)
    run.ready()
    for _ in range(100):
        run.batch(1, after=0.01)
    run.commit(100)
    run.finish()
    pushed.observer.close()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (mute, "timed out|no answer in time"),
        (endless, "no answer in time"),
        (rubbish, "its answer is not HTTP (BadStatusLine)"),
        (broken, "its answer is not HTTP"),
        (failing, "it answers HTTP 500;"),
        (redirecting, "it answers HTTP 302;"),
        (lying, "it answers with a page, as no Pushgateway does;"),
        (dripping, "timed out|no answer in time"),
    ],
)
def test_a_bad_gateway_costs_one_warning(
    run: Any, answer: Callable[[socket.socket, threading.Event], None], says: str
) -> None:
    """Whatever it answers, the run ends as it would have, at most the timeout later."""
    with server(answer) as url:
        pushed = Pushed(run, url, every=0.02)
        seconds = whole_run(run, pushed)
    assert seconds < 5.0
    (warning,) = pushed.warnings
    assert warning.startswith(f"cannot push metrics to {url.removeprefix('http://')}: ")
    assert warning.endswith("the run goes on")
    assert any(part in warning for part in says.split("|")), warning
    assert run.tally.snapshot().finished.complete


def test_a_dead_port_costs_one_warning(run: Any) -> None:
    """Nobody listens: one warning, which says so and when it is tried again."""
    pushed = Pushed(run, f"http://127.0.0.1:{free_port()}", every=0.02)
    assert whole_run(run, pushed) < 5.0
    (warning,) = pushed.warnings
    assert "Connection refused; tried again every 0.02 s" in warning


def test_a_gateway_that_comes_back_gets_the_figures(
    tmp_path: Path, run: Any, require: Callable[[str], str]
) -> None:
    """A gateway that was gone at the start has everything at the end."""
    require("prometheus-pushgateway")
    url = f"http://127.0.0.1:{free_port()}"
    pushed = Pushed(run, url, timeout=5.0)
    run.start(rows=100, units=1)
    deadline = time.monotonic() + READY_S
    while not pushed.warnings:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = launch(url, tmp_path / "log")
    try:
        wait_for(url)
        run.commit(100)
        run.finish()
        pushed.observer.close()
        assert series(url, "embed", "")["batchinfer_last_run_rows{outcome=ok}"] == 100
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)


def test_a_password_in_the_url_is_used_and_not_told(run: Any) -> None:
    """User and password of the URL become a header, and stand in no warning."""
    heard: list[bytes] = []

    def listen(connection: socket.socket, stop: threading.Event) -> None:
        heard.append(hear(connection))
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    with server(listen) as url:
        pushed = Pushed(run, url.replace("http://", "http://us%40er:s3cret%2F@"))
        whole_run(run, pushed)
    header = base64.b64encode(b"us@er:s3cret/")
    assert b"Authorization: Basic " + header in heard[0]
    assert heard[0].startswith(b"PUT /metrics/job/embed/instance/pod-0 ")
    (warning,) = pushed.warnings
    assert "it answers HTTP 401;" in warning
    assert "s3cret" not in warning


@pytest.mark.parametrize(
    "url", ["http://[bad", "http://user:s3cret@:9091", "http://host:http", "http://host:0"]
)
def test_a_url_without_a_host_is_refused_at_once(run: Any, url: str) -> None:
    """A URL that can never work is an error of the job file, which does not repeat it."""
    with pytest.raises(JobFileError, match="names no host") as caught:
        Pushed(run, url)
    assert "s3cret" not in str(caught.value)


def test_a_run_that_never_began_pushes_its_end(run: Any) -> None:
    """Where planning failed, the job's group is told once, of the end and of no rows; no other is touched."""
    heard: list[bytes] = []

    def listen(connection: socket.socket, stop: threading.Event) -> None:
        heard.append(hear(connection, body=True))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with server(listen) as url:
        pushed = Pushed(run, url, every=0.02, timeout=5.0)
        run.say(RunFailed(kind="input", message="nothing there", exit_code=66, seconds=1.5))
        pushed.observer.close()
    (request,) = heard
    head, _, body = request.decode().partition("\r\n\r\n")
    assert head.startswith("POST /metrics/job/embed ")
    told = [line for line in body.splitlines() if not line.startswith("#")]
    assert told == [
        "batchinfer_last_run_timestamp_seconds 1.79e+09",
        "batchinfer_last_run_duration_seconds 1.5",
        "batchinfer_last_run_exit_code 66.0",
    ]
    assert pushed.warnings == []


def test_the_time_of_the_last_success_outlives_a_run_that_never_began(
    real: str, new_run: Callable[[], Any]
) -> None:
    """After a success, a run that is refused changes the exit code in the job's group and keeps the time."""
    first, second = new_run(), new_run()
    pushed = Pushed(first, real, job="refused", timeout=5.0)
    first.start(rows=100, units=1)
    first.commit(100)
    first.finish()
    pushed.observer.close()
    pushed = Pushed(second, real, job="refused", timeout=5.0)
    second.say(RunFailed(kind="fingerprint", message="another job", exit_code=67))
    pushed.observer.close()
    held = series(real, "refused", "")
    assert held["batchinfer_last_run_exit_code"] == 67
    assert held["batchinfer_last_success_timestamp_seconds"] == 1.79e9
    assert series(real, "refused", "pod-0") == {}


@pytest.mark.parametrize("answer", [mute, endless, failing, lying, dripping])
def test_a_bad_gateway_holds_up_no_run_that_never_began(
    run: Any, answer: Callable[[socket.socket, threading.Event], None]
) -> None:
    """It costs one warning, at most the timeout later, which does not say that the run goes on."""
    with server(answer) as url:
        pushed = Pushed(run, url)
        began = time.monotonic()
        run.say(RunFailed(kind="input", message="nothing there", exit_code=66))
        pushed.observer.close()
        seconds = time.monotonic() - began
    assert seconds < 5.0
    (warning,) = pushed.warnings
    assert warning.endswith("; how it ended is not told there")


def test_the_warning_reaches_the_person(run: Any, tmp_path: Path) -> None:
    """The display prints what the pushing thread has to say, before its last words."""
    options = ObserveOptions(
        pushgateway=PushgatewayOptions(url=f"http://127.0.0.1:{free_port()}", timeout=0.5), interval=600.0
    )
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        observers = make_observers(options, job="embed", interactive=False, log_format="text", stream=file)
        run.hear = [observer.on_event for observer in observers]
        run.start(rows=100, units=1)
        run.ready()
        run.commit(100)
        run.finish(rows_ok=100, rows_error=0, rows_filtered=0)
        for observer in observers:
            observer.close()
    lines = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    warned = [number for number, line in enumerate(lines) if "warning=pushgateway" in line]
    assert len(warned) == 1
    assert warned[0] < next(number for number, line in enumerate(lines) if line.startswith("done"))
