"""What a run says to the network: to its Pushgateway little, in a group of its own, and to nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from batchinfer.config import load_job
from batchinfer.config.observe import PushgatewayOptions
from batchinfer.data import ErrorCode, Receipt, RowError
from batchinfer.errors import JobFileError
from batchinfer.events import RunFinished, RunStarted, UnitCommitted, Warned, WorkerReady
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.last_run import LastRun
from batchinfer.telemetry.metrics import RunMetrics, registry_of
from batchinfer.telemetry.push import Pushgateway
from batchinfer.telemetry.tally import Tally
from tests.conftest import doubling_job, environment, write_shards
from tests.security.servers import Heard, serving

LABELS = {"outcome", "state", "code", "stage", "le", "gpu", "version", "python", "kind", "queue", "reason"}
"""Every label that a metric may have. Their values are from fixed lists, not from data."""


def a_run(tally: Tally, *, files: int) -> None:
    """Tell of a run over so many files, each of which failed with a text of its own."""
    started: dict[str, Any] = {
        "units_total": files,
        "units_done": 0,
        "rows_total": files,
        "rows_done": 0,
        "num_workers": 1,
    }
    tally.on_event(RunStarted(job="a", run="r", model="m", output="o", **started))
    tally.on_event(WorkerReady(worker=0, device="cpu", load_s=0.1, pid=1))
    for at in range(files):
        error = RowError(
            stage=f"step-{at}",
            code=list(ErrorCode)[at % len(ErrorCode)],
            message=f"row {at} of Erika says {at}",
            attempts=1,
            source=f"file-{at}.parquet",
            row=at,
        )
        receipt = Receipt(
            unit=at,
            parts=(),
            rows_read=1,
            rows_ok=0,
            rows_error=1,
            rows_filtered=0,
            won=True,
            errors=(error,),
            error_codes={str(error.code): 1},
        )
        tally.on_event(UnitCommitted(worker=0, receipt=receipt))
        tally.on_event(Warned(code=f"code-{at}", message=f"file-{at}"))
    tally.on_event(RunFinished(exit_code=0, seconds=1.0, complete=True))


def series(tally: Tally) -> set[str]:
    """Return every time series that would be pushed."""
    text = generate_latest(registry_of(RunMetrics(tally, Devices(gpus=tuple)), LastRun(tally))).decode()
    families = text_string_to_metric_families(text)
    return {
        f"{sample.name}{sorted(sample.labels.items())}" for family in families for sample in family.samples
    }


def test_metrics_do_not_grow_with_the_data() -> None:
    """Ten thousand files with ten thousand texts of errors give the same series as ten, and none of their
    names or texts."""
    few, many = Tally(), Tally()
    a_run(few, files=10)
    a_run(many, files=10_000)
    assert series(many) == series(few)
    assert len(series(many)) < 100
    assert not [line for line in series(many) if "file-" in line or "Erika" in line or "step-" in line]
    labels = {
        label
        for family in text_string_to_metric_families(
            generate_latest(registry_of(RunMetrics(many, Devices(gpus=tuple)))).decode()
        )
        for sample in family.samples
        for label in sample.labels
    }
    assert labels <= LABELS


def gateway_job(url: str) -> dict[str, Any]:
    """Return a job that pushes to this URL."""
    return {
        "job": "a",
        "input": {"path": "d"},
        "model": {"backend": "simulated"},
        "output": {"path": "o"},
        "observe": {"pushgateway": {"url": url}},
    }


def test_no_gateway_is_spoken_to_unless_a_job_names_it(tmp_path: Path) -> None:
    """Metrics are pushed nowhere by default."""
    job = load_job({**gateway_job("http://h:1"), "observe": {}})
    assert job.observe.pushgateway is None


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        *(("gateway:9091", False), ("10.0.0.7:9091", False), ("localhost.evil.example", False)),
        *(("127.0.0.1.evil.example", False), ("[2001:db8::1]:9091", False), ("0.0.0.0:9091", False)),
        *(("127.0.0.1:9091", True), ("localhost:9091", True), ("[::1]:9091", True), ("127.8.8.8", True)),
    ],
)
def test_a_password_does_not_cross_a_network_in_the_open(
    monkeypatch: pytest.MonkeyPatch, host: str, *, accepted: bool
) -> None:
    """Over http a password goes to this machine only; over https, or without one, to any."""
    monkeypatch.setenv("GATEWAY", f"http://me:hunter2hunter2@{host}/x")
    if accepted:
        assert load_job(gateway_job("${env:GATEWAY}")).observe.pushgateway is not None
    else:
        with pytest.raises(JobFileError, match="would send its password over http") as caught:
            load_job(gateway_job("${env:GATEWAY}"))
        assert caught.value.exit_code == 78
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("GATEWAY", f"https://me:hunter2hunter2@{host}/x")
    assert load_job(gateway_job("${env:GATEWAY}")).observe.pushgateway is not None
    assert load_job(gateway_job(f"http://{host}/x")).observe.pushgateway is not None


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://h/x", "gopher://h", "javascript:1", "//h/x", "h:9091"]
)
def test_a_gateway_is_spoken_to_over_http_only(url: str) -> None:
    """Another scheme is refused when the job is read."""
    with pytest.raises(JobFileError, match="must be an http:// or https:// URL"):
        load_job(gateway_job(url))


def pushed(server_port: int, *, index: int | None, exit_code: int) -> None:
    """Tell of a run that ends with this code, and push it."""
    tally = Tally()
    options = PushgatewayOptions(url=f"http://127.0.0.1:{server_port}", every=600.0)
    metrics, last_run = RunMetrics(tally, Devices(gpus=tuple)), LastRun(tally)
    observer = Pushgateway(
        options, job="jobs/of ours", metrics=metrics, last_run=last_run, warn=pytest.fail, index=index
    )
    started: dict[str, Any] = {
        "units_total": 1,
        "units_done": 0,
        "rows_total": 1,
        "rows_done": 0,
        "num_workers": 1,
    }
    for event in (
        RunStarted(job="a", run="r", model="m", output="o", **started),
        RunFinished(exit_code=exit_code, seconds=1.0, complete=exit_code == 0),
    ):
        for each in (tally, metrics, last_run, observer):
            each.on_event(event)
    observer.close()


def test_every_process_has_a_group_which_goes_with_it() -> None:
    """Each index pushes to a group of its own, never to another's; a success deletes it, a failure keeps it."""

    def answer(heard: Heard) -> tuple[int, bytes]:
        return 202, b""

    with serving(answer) as gateway:
        for index in (0, 1):
            pushed(gateway.port, index=index, exit_code=0)
        pushed(gateway.port, index=2, exit_code=3)
    lines = [heard.line.removesuffix(" HTTP/1.1") for heard in gateway.requests]
    groups = [line.partition(" /metrics/")[2] for line in lines]
    assert {group for group in groups if "instance" in group} == {
        f"job@base64/am9icy9vZiBvdXJz/instance/index-{index}" for index in (0, 1, 2)
    }
    deleted = [
        group.rpartition("/")[2] for line, group in zip(lines, groups, strict=True) if "DELETE" in line
    ]
    assert deleted == ["index-0", "index-1"]
    assert not [heard for heard in gateway.requests if b"index-" in heard.body]


WATCHED = """
import json, os, pathlib, sys, threading, time
import batchinfer

def sockets(pid):
    found = set()
    for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target[8:-1])
    return found

def watch():
    while True:
        pids = [os.getpid(), *(int(p) for p in pathlib.Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split())]
        for pid in pids:
            try:
                seen.update((pid == os.getpid(), inode) for inode in sockets(pid))
                everybody.add(pid)
            except OSError:
                pass
        time.sleep(0.005)

seen, everybody = set(), set()
threading.Thread(target=watch, daemon=True).start()
batchinfer.run_job(json.loads(sys.argv[1]))
print(json.dumps([len(everybody), sorted(inode for _, inode in seen)]))
"""


def test_a_run_opens_no_port(tmp_path: Path) -> None:
    """Neither the command nor its workers hold a socket, listening or not, while a local job runs."""
    write_shards(tmp_path / "in", [250])
    document = json.loads(doubling_job(tmp_path).read_text())
    document["input"]["path"], document["output"]["path"] = str(tmp_path / "in"), str(tmp_path / "out")
    document["model"]["seconds_per_batch"] = 0.05
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(document)],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    num_processes, inodes = json.loads(done.stdout)
    assert num_processes >= 2
    assert inodes == []
