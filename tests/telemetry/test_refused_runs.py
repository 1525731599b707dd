"""Runs that fail before they begin, as whole commands: a gateway and a file hear of it, and nothing waits."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchinfer.cli.arguments import this_machine
from batchinfer.errors import DeviceError
from batchinfer.events import Event, RunFailed
from tests.conftest import Run, doubling_job, write_shards
from tests.security.servers import Heard, serving
from tests.telemetry.bad_gateways import mute, server
from tests.telemetry.prometheus import free_address

SUCCESS = 1.5e9
REFUSALS: dict[str, tuple[dict[str, Any], int]] = {
    "no input": ({"input": {"path": "nowhere/"}}, 66),
    "a changed job": ({"output": {"carry": ["id", "text"]}}, 67),
    "a missing model file": ({"model": {"backend": "onnx", "path": "none.onnx"}}, 78),
    "a missing device": ({"compute": {"devices": ["cuda:99"]}}, 71),
}


def answer(heard: Heard) -> tuple[int, bytes]:
    """Take whatever is pushed."""
    return 200, b""


def metrics(text: str) -> dict[str, float]:
    """Return values by name, without labels."""
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name.partition("{")[0]: float(value) for name, _, value in pairs}


@pytest.fixture
def job(tmp_path: Path, batchinfer: Run) -> Callable[..., str]:
    """A job of which one run was complete; with sections that change it."""
    write_shards(tmp_path / "in", [40])
    done = batchinfer("run", str(doubling_job(tmp_path)))
    assert done.returncode == 0, done.stderr

    def make(**sections: Any) -> str:
        if sections.get("model", {}).get("backend") == "onnx":
            sections["model"]["seconds_per_batch"] = None
        path = doubling_job(tmp_path, **sections)
        document = json.loads(path.read_text())
        document["model"] = {key: value for key, value in document["model"].items() if value is not None}
        path.write_text(json.dumps(document))
        return str(path)

    return make


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refused_run_is_told(
    tmp_path: Path, batchinfer: Run, job: Callable[..., str], refusal: str
) -> None:
    """The group of the job hears the exit code, by one POST that touches nothing else; the file says the same,
    and keeps the time of the last success. Standard error is one line of JSON, which names the run."""
    changed, code = REFUSALS[refusal]
    textfile = tmp_path / "doubling.prom"
    textfile.write_text(f'batchinfer_last_success_timestamp_seconds{{job="doubling"}} {SUCCESS}\n')
    with serving(answer) as gateway:
        observe = {"pushgateway": {"url": f"http://127.0.0.1:{gateway.port}"}, "textfile": str(textfile)}
        done = batchinfer("run", job(observe=observe, **changed), "--log-format", "json")
    assert done.returncode == code, done.stderr
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["event"], line["job"]) == ("error", "doubling")
    assert re.fullmatch("[0-9a-f]{8}", line["run"])
    (request,) = gateway.requests
    assert request.line.startswith("POST /metrics/job/doubling ")
    told = metrics(request.body.decode())
    assert set(told) == {
        "batchinfer_last_run_timestamp_seconds",
        "batchinfer_last_run_duration_seconds",
        "batchinfer_last_run_exit_code",
    }
    assert told["batchinfer_last_run_exit_code"] == code
    filed = metrics(textfile.read_text())
    assert set(filed) == {*told, "batchinfer_last_success_timestamp_seconds"}
    assert filed["batchinfer_last_run_exit_code"] == code
    assert filed["batchinfer_last_success_timestamp_seconds"] == SUCCESS


def test_a_gateway_that_is_gone_changes_no_exit_code(batchinfer: Run, job: Callable[..., str]) -> None:
    """A refused run with nobody at the gateway ends with its own code, after a warning."""
    observe = {"pushgateway": {"url": f"http://{free_address()}"}}
    done = batchinfer("run", job(observe=observe, input={"path": "nowhere/"}), "--log-format", "json")
    assert done.returncode == 66
    error, warning = [json.loads(line) for line in done.stderr.splitlines()]
    assert (error["kind"], warning["code"]) == ("input", "pushgateway")
    assert "Connection refused; how it ended is not told there" in warning["message"]


def test_a_mute_gateway_holds_a_refused_run_up_for_its_timeout(
    batchinfer: Run, job: Callable[..., str]
) -> None:
    """It waits no longer than `timeout`, and the exit code is that of the refusal."""
    with server(mute) as url:
        observe = {"pushgateway": {"url": url, "timeout": 0.2}}
        began = time.monotonic()
        done = batchinfer("run", job(observe=observe, input={"path": "nowhere/"}))
        seconds = time.monotonic() - began
    assert done.returncode == 66
    assert seconds < 25, "the gateway is silent for 30 s"
    assert "warning=pushgateway" in done.stderr
    assert "error[input]: input.path matches no file" in done.stderr


def test_a_retry_with_nothing_to_do_is_no_failure(batchinfer: Run, job: Callable[..., str]) -> None:
    """No failed row is asked for: exit 0, no error in the log, and the gateway hears nothing."""
    with serving(answer) as gateway:
        observe = {"pushgateway": {"url": f"http://127.0.0.1:{gateway.port}"}}
        done = batchinfer("retry", job(observe=observe), "--log-format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("nothing to do")
    assert gateway.requests == []


def test_a_driver_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What refuses a run before its job is looked at reaches the observers too, who are closed then."""

    class Ear:
        def __init__(self) -> None:
            self.heard: list[Event] = []
            self.is_closed = False

        def on_event(self, event: Event) -> None:
            self.heard.append(event)

        def close(self) -> None:
            self.is_closed = True

    def hang() -> list[object]:
        raise DeviceError("the driver does not answer")

    monkeypatch.setattr("batchinfer.hardware.gpus_in_time", hang)
    ear = Ear()
    with pytest.raises(DeviceError):
        this_machine([ear])
    (failed,) = ear.heard
    assert isinstance(failed, RunFailed)
    assert (failed.exit_code, ear.is_closed) == (71, True)
