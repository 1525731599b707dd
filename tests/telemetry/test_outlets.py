"""Metrics that are asked for, or left in a file."""

from __future__ import annotations

import http.client
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from batchinfer.events import RunFailed, RunFinished
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.last_run import LastRun
from batchinfer.telemetry.listen import Listener
from batchinfer.telemetry.metrics import RunMetrics
from batchinfer.telemetry.textfile import Textfile


def ask(url: str) -> tuple[int, str]:
    """Return what is answered under a URL."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def values(text: str) -> dict[str, float]:
    """Return samples by name and labels, as they are spelled."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_run_can_be_asked(run: Any) -> None:
    """Metrics are there at any time; it is alive from the start, and ready while a worker has its model."""
    listener = Listener("127.0.0.1:0", tally=run.tally, metrics=RunMetrics(run.tally, Devices(gpus=tuple)))
    assert ask(f"{listener.url}/healthz") == (200, "ok\n")
    assert ask(f"{listener.url}/readyz") == (503, "no worker has its model\n")
    run.start(rows=100, units=1)
    assert ask(f"{listener.url}/readyz")[0] == 503
    run.ready()
    assert ask(f"{listener.url}/readyz") == (200, "workers with their model: 1\n")
    run.commit(40)
    code, text = ask(f"{listener.url}/metrics")
    assert (code, values(text)["batchinfer_rows_total[('outcome', 'ok')]"]) == (200, 40)
    assert ask(f"{listener.url}/")[0] == 404
    host, port = listener.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=5)
    connection.request("HEAD", "/metrics")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.request("POST", "/metrics", body=b"x")
    assert connection.getresponse().status == 501
    connection.close()
    run.finish()
    assert ask(f"{listener.url}/readyz")[0] == 503
    listener.close()
    with pytest.raises(urllib.error.URLError):
        ask(f"{listener.url}/healthz")


def test_it_listens_where_it_was_told_to(run: Any) -> None:
    """It is bound to the one address, and to no port that another has."""
    metrics = RunMetrics(run.tally, Devices(gpus=tuple))
    listener = Listener("127.0.0.2:0", tally=run.tally, metrics=metrics)
    port = int(listener.url.rpartition(":")[2])
    assert listener.url == f"http://127.0.0.2:{port}"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(OSError, match="in use"):
        Listener(f"127.0.0.2:{port}", tally=run.tally, metrics=metrics)
    listener.close()


def test_callers_who_say_nothing_hold_nobody_up(run: Any) -> None:
    """Connections that wait are few, and more are closed; the end of the run waits for none of them."""
    listener = Listener("127.0.0.1:0", tally=run.tally, metrics=RunMetrics(run.tally, Devices(gpus=tuple)))
    address = ("127.0.0.1", int(listener.url.rpartition(":")[2]))
    silent = [socket.create_connection(address, timeout=5) for _ in range(20)]
    assert silent[-1].recv(1) == b""
    listener.close()
    for connection in silent:
        connection.close()


class Filed:
    """A run that writes a file, with the warnings that it caused."""

    def __init__(self, run: Any, path: Path) -> None:
        self.warnings: list[str] = []
        metrics = RunMetrics(run.tally, Devices(gpus=tuple))
        last_run = LastRun(run.tally, wall_clock=lambda: 1.79e9)
        self.observer = Textfile(
            str(path),
            job="embed",
            instance="index-0",
            metrics=metrics,
            last_run=last_run,
            every_s=600.0,
            warn=self.warnings.append,
        )
        run.hear += [metrics.on_event, last_run.on_event, self.observer.on_event]


OURS = "('instance', 'index-0'), ('job', 'embed')"


def test_a_file_for_the_collector(tmp_path: Path, new_run: Callable[[], Any]) -> None:
    """A success leaves what it came to, a failure its figures, and the time of the last success is kept by
    runs that are none; the file is readable for everybody, and nothing lies beside it."""
    path = tmp_path / "embed.prom"
    for exit_code in (0, 3):
        run = new_run()
        filed = Filed(run, path)
        run.start(rows=100, units=1)
        run.ready()
        run.commit(100 if exit_code == 0 else 40)
        run.finish(exit_code=exit_code)
        filed.observer.close()
        found = values(path.read_text())
        assert filed.warnings == []
        assert found[f"batchinfer_last_run_exit_code[{OURS}]"] == exit_code
        assert found[f"batchinfer_last_success_timestamp_seconds[{OURS}]"] == 1.79e9
        live = found.get(f"batchinfer_rows_total[{OURS}, ('outcome', 'ok')]")
        assert live == (None if exit_code == 0 else 40)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["embed.prom"]


def test_a_share_keeps_the_time_of_the_last_success(tmp_path: Path, run: Any) -> None:
    """A process whose share is done, while others work on, says no more than what was known before."""
    path = tmp_path / "embed.prom"
    path.write_text('batchinfer_last_success_timestamp_seconds{job="embed"} 1.5e9\nnonsense {\n')
    filed = Filed(run, path)
    run.start(rows=100, units=2)
    run.commit(50)
    run.say(RunFinished(exit_code=0, seconds=1.0, complete=False))
    filed.observer.close()
    assert values(path.read_text()) == {f"batchinfer_last_success_timestamp_seconds[{OURS}]": 1.5e9}


def test_a_run_that_never_began_leaves_its_end(tmp_path: Path, run: Any) -> None:
    """Where planning failed, the file says how it ended, and when a run was last complete; no rows."""
    path = tmp_path / "embed.prom"
    path.write_text(
        'batchinfer_last_success_timestamp_seconds{job="embed"} 1.5e9\n'
        'batchinfer_last_run_rows{job="embed",outcome="ok"} 100\n'
    )
    filed = Filed(run, path)
    run.say(RunFailed(kind="input", message="nothing there", exit_code=66, seconds=1.5))
    filed.observer.close()
    assert values(path.read_text()) == {
        f"batchinfer_last_run_timestamp_seconds[{OURS}]": 1.79e9,
        f"batchinfer_last_run_duration_seconds[{OURS}]": 1.5,
        f"batchinfer_last_run_exit_code[{OURS}]": 66,
        f"batchinfer_last_success_timestamp_seconds[{OURS}]": 1.5e9,
    }
    assert filed.warnings == []


def test_a_file_that_cannot_be_written_costs_one_warning(tmp_path: Path, run: Any) -> None:
    """Where the folder is missing, the run goes on and says so once."""
    filed = Filed(run, tmp_path / "missing" / "embed.prom")
    run.start(rows=100, units=1)
    run.commit(100)
    run.finish()
    filed.observer.close()
    (warning,) = filed.warnings
    assert warning.endswith("embed.prom: No such file or directory; the run goes on")
