"""OpenLineage events: what a service, or a file, is told of a run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import batchinfer as batchinfer_
from batchinfer.errors import BudgetExceeded
from batchinfer.events import Event, Warned
from batchinfer.telemetry.lineage import named
from tests.conftest import CANARY, Run, doubling_job, write_shards


@pytest.fixture
def service() -> Iterator[tuple[str, list[tuple[str, str, dict[str, Any]]]]]:
    """A lineage service: its URL, and what it was told as (path, authorization, event)."""
    told: list[tuple[str, str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        """Takes every event."""

        def do_POST(self) -> None:
            """Note one."""
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append((self.path, self.headers.get("Authorization", ""), json.loads(body)))
            self.send_response(201)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", told
    server.shutdown()
    server.server_close()


def test_a_service_hears_of_a_run(tmp_path: Path, batchinfer: Run, service: Any) -> None:
    """START, then COMPLETE with the number of rows, of one run, with the key as a bearer token; a service that is
    gone is a warning."""
    url, told = service
    write_shards(tmp_path / "in", [100])
    key = "${env:BATCHINFER_TEST_SECRET}"
    lineage = {"url": url, "api_key": key, "namespace": "nightly"}
    done = batchinfer("run", str(doubling_job(tmp_path, observe={"openlineage": lineage})))
    assert done.returncode == 0, done.stderr
    assert [(path, key, event["eventType"]) for path, key, event in told] == [
        ("/api/v1/lineage", f"Bearer {CANARY}", "START"),
        ("/api/v1/lineage", f"Bearer {CANARY}", "COMPLETE"),
    ]
    first, last = (event for _, _, event in told)
    assert first["run"]["runId"] == last["run"]["runId"]
    assert (last["job"]["namespace"], last["job"]["name"]) == ("nightly", "doubling")
    assert [(one["namespace"], one["name"]) for one in last["inputs"]] == [("file", f"{tmp_path}/in")]
    (output,) = last["outputs"]
    assert (output["namespace"], output["name"]) == ("file", f"{tmp_path}/out")
    assert output["outputFacets"]["outputStatistics"]["rowCount"] == 100
    assert len(output["facets"]["version"]["datasetVersion"]) == 64

    gone = doubling_job(
        tmp_path, output={"path": "b/"}, observe={"openlineage": {"url": "http://127.0.0.1:1"}}
    )
    done = batchinfer("run", str(gone))
    assert done.returncode == 0, done.stderr
    assert "warning=openlineage" in done.stderr


def test_a_file_hears_of_a_run_that_fails(tmp_path: Path) -> None:
    """FAIL comes with what ended the run."""
    write_shards(tmp_path / "in", [100])
    job = doubling_job(
        tmp_path,
        model={"faults": {"7.0": "error"}},
        errors={"max": 0},
        observe={"openlineage": {"file": "lineage.jsonl"}},
    )
    heard: list[Event] = []

    class Ear:
        """Hears everything."""

        def on_event(self, event: Event) -> None:
            """Hear."""
            heard.append(event)

        def close(self) -> None:
            """Do nothing."""

    with pytest.raises(BudgetExceeded):
        batchinfer_.run_job(str(job), observers=[Ear()])
    assert not [event for event in heard if isinstance(event, Warned)]
    events = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    assert [event["eventType"] for event in events] == ["START", "FAIL"]
    assert "errors.max" in events[1]["run"]["facets"]["errorMessage"]["message"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("s3://lake/products/dt=*/*.parquet", ("s3://lake", "products")),
        ("gs://bucket", ("gs://bucket", "/")),
        ("/data/in/", ("file", "/data/in")),
        ("/*.parquet", ("file", "/")),
    ],
)
def test_datasets_are_named_by_their_place(path: str, name: tuple[str, str]) -> None:
    """Bucket and key, or `file` and path; of a glob, its folder."""
    assert named(path) == name
