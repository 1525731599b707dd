"""What a store's bad days look like through the real client, and what a run makes of them."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.engine.publish import Outcome, publish
from batchinfer.errors import UnavailableError
from batchinfer.storage import AlreadyExists, open_store
from tests.conftest import Run, doubling_job, write_shards
from tests.faults.server import Fault, FaultServer

UNCLEAR = ["apply then drop", "apply then 500", "apply then 503", "drop", "409", "plain 412", "503", "500"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """A server of its own for each test."""
    monkeypatch.setenv("LAKE_SECRET", "s")
    with FaultServer() as running:
        yield running


def written(server: FaultServer, **more: Any) -> dict[str, Any]:
    """Return storage options as they stand in a job file."""
    return {**server.options, "secret": "${env:LAKE_SECRET}", **more}


def s3_job(folder: Path, server: FaultServer, **sections: Any) -> Path:
    """Write a job that doubles local rows into the server's bucket."""
    options = written(server, retry_timeout=8, timeout=3)
    output = {"path": "s3://lake/out", "carry": ["id"], "storage_options": options}
    return doubling_job(folder, **{**sections, "output": {**output, **sections.get("output", {})}})


def rows_of(server: FaultServer) -> list[int]:
    """Return the ids in the bucket's parts, in order."""
    parts = [server.objects[key].body for key in server.below("lake/out/part-")]
    return [row for part in parts for row in pq.read_table(pa.BufferReader(part))["id"].to_pylist()]


@pytest.mark.parametrize("kind", UNCLEAR)
def test_an_unclear_create_is_resolved(server: FaultServer, kind: Any) -> None:
    """Applied or not, refused or dropped: the object is there once, and known to be ours."""
    store = open_store("s3://lake/", server.options)
    server.faults = [Fault(kind, pattern="lake/x", times=2)]
    outcome = publish(store, "s3://lake/x", b"mine", stamp={"attempt": "me"})
    assert outcome is Outcome.WON
    assert server.objects["lake/x"].body == b"mine"


@pytest.mark.parametrize("kind", UNCLEAR)
def test_anothers_write_is_known_as_such(server: FaultServer, kind: Any) -> None:
    """What somebody else has written stays, whatever the client is told on the way."""
    store = open_store("s3://lake/", server.options)
    assert publish(store, "s3://lake/x", b"theirs", stamp={"attempt": "they"}) is Outcome.WON
    if not kind.startswith("apply"):
        server.faults = [Fault(kind, pattern="lake/x", times=1)]
    assert publish(store, "s3://lake/x", b"mine", stamp={"attempt": "me"}) is Outcome.OTHER
    assert publish(store, "s3://lake/x", b"theirs", stamp={"attempt": "me"}) is Outcome.SAME
    assert server.objects["lake/x"].body == b"theirs"


def test_the_same_key_is_created_once(server: FaultServer) -> None:
    """The server itself keeps the condition, so that these tests mean something."""
    store = open_store("s3://lake/", server.options)
    store.create("s3://lake/x", b"")
    with pytest.raises(AlreadyExists):
        store.create("s3://lake/x", b"")


@pytest.mark.parametrize("kind", ["apply then drop", "apply then 500", "apply then 503", "drop", "409"])
def test_a_run_with_unclear_commits(server: FaultServer, tmp_path: Path, batchinfer: Run, kind: Any) -> None:
    """Every first commit of a part is unclear: each is published once and counted once, by its writer."""
    write_shards(tmp_path / "in", [450])
    server.faults = [Fault(kind, pattern=f"lake/out/part-{unit:05d}*", times=1) for unit in range(5)]
    job = str(s3_job(tmp_path, server))
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert "another process" not in done.stderr
    assert "450 in = 450 ok" in done.stderr
    assert rows_of(server) == list(range(450))
    assert batchinfer("verify", "--deep", job).returncode == 0


def test_commits_are_one_request_each(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """Without faults, forty units cost forty conditional puts, and a few requests for the whole run."""
    write_shards(tmp_path / "in", [4000])
    done = batchinfer("run", str(s3_job(tmp_path, server)))
    assert done.returncode == 0, done.stderr
    assert server.requests["PUT"] <= 40 + 12
    assert server.requests["GET"] + server.requests["HEAD"] <= 12
    assert server.requests["LIST"] <= 12


def test_throttling_is_waited_out(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """A store that says SlowDown for a while slows the run down, and nothing else."""
    write_shards(tmp_path / "in", [450])
    server.faults = [Fault("503", method=method, times=6) for method in ("PUT", "GET", "LIST", "HEAD")]
    done = batchinfer("run", str(s3_job(tmp_path, server)))
    assert done.returncode == 0, done.stderr
    assert rows_of(server) == list(range(450))


def test_throttling_beyond_the_budget_is_resumable(
    server: FaultServer, tmp_path: Path, batchinfer: Run
) -> None:
    """A store that stays away ends the run with 69 once its budget is spent; the same command resumes."""
    write_shards(tmp_path / "in", [450])
    job = str(s3_job(tmp_path, server, output={"storage_options": written(server, retry_timeout=2)}))
    server.faults = [Fault("503", pattern="lake/out/part-*", skip=2)]
    stopped = batchinfer("run", job)
    assert stopped.returncode == 69, stopped.stderr
    assert "run the same command again" in stopped.stderr
    assert len(server.below("lake/out/part-")) == 2
    server.faults = []
    assert batchinfer("run", job).returncode == 0
    assert rows_of(server) == list(range(450))


def test_a_hung_socket_is_given_up(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """A request that gets no answer is ended by its deadline and made again."""
    write_shards(tmp_path / "in", [250])
    server.faults = [
        Fault("hang", pattern="lake/out/part-00001*", times=1, seconds=30),
        Fault("drip", method="GET", pattern="*manifest*", times=1, seconds=30),
    ]
    job = str(s3_job(tmp_path, server))
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert batchinfer("verify", job).returncode == 0
    assert rows_of(server) == list(range(250))


def test_nobody_at_home(tmp_path: Path, batchinfer: Run) -> None:
    """A refused connection at the start ends with 69 after its budget, before a model is loaded."""
    write_shards(tmp_path / "in", [50])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    options = {"endpoint_url": endpoint, "anonymous": True, "retry_timeout": 1}
    job = doubling_job(tmp_path, output={"path": "s3://lake/out", "storage_options": options})
    refused = batchinfer("run", str(job))
    assert refused.returncode == 69, refused.stderr
    assert "worker_ready" not in refused.stderr


@pytest.mark.parametrize(("kind", "code"), [("expired", 77), ("forbidden", 77)])
def test_credentials_that_end(
    server: FaultServer, tmp_path: Path, batchinfer: Run, kind: Any, code: int
) -> None:
    """Credentials that expire in the middle end the run with 77; with new ones it resumes."""
    write_shards(tmp_path / "in", [450])
    job = str(s3_job(tmp_path, server))
    server.faults = [Fault(kind, pattern="lake/out/part-*", skip=2)]
    stopped = batchinfer("run", job)
    assert stopped.returncode == code, stopped.stderr
    assert "credentials" in stopped.stderr
    server.faults = []
    assert batchinfer("run", job).returncode == 0
    assert rows_of(server) == list(range(450))


def test_no_permission_is_found_before_the_model_is_loaded(
    server: FaultServer, tmp_path: Path, batchinfer: Run
) -> None:
    """An output that may not be written is told at once, not after minutes of loading."""
    write_shards(tmp_path / "in", [450])
    server.faults = [Fault("forbidden", pattern="*")]
    refused = batchinfer("run", str(s3_job(tmp_path, server, model={"load_seconds": 30})), timeout=20)
    assert refused.returncode == 77, refused.stderr


def test_no_permission_to_list(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """A bucket that may not be listed is a matter of permission as well, not of the network."""
    write_shards(tmp_path / "in", [50])
    server.faults = [Fault("forbidden", method="LIST")]
    refused = batchinfer("run", str(s3_job(tmp_path, server)))
    assert refused.returncode == 77, refused.stderr


def test_a_store_that_lies_is_refused(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """A store that ignores the condition is refused with 73, and taken where the job declares what it can."""
    write_shards(tmp_path / "in", [150])
    server.faults = [Fault("ignore condition")]
    refused = batchinfer("run", str(s3_job(tmp_path, server)))
    assert refused.returncode == 73, refused.stderr
    assert "commit: deterministic" in refused.stderr
    assert not server.below("lake/out/part-")
    declared = batchinfer("run", str(s3_job(tmp_path, server, output={"commit": "deterministic"})))
    assert declared.returncode == 0, declared.stderr
    assert rows_of(server) == list(range(150))


def test_a_listing_that_lags_costs_work_and_nothing_else(
    server: FaultServer, tmp_path: Path, batchinfer: Run
) -> None:
    """Units that a stale listing hides are computed again and found committed; nothing is doubled."""
    write_shards(tmp_path / "in", [450])
    job = str(s3_job(tmp_path, server))
    server.faults = [Fault("503", pattern="lake/out/part-00003*", times=1000)]
    assert batchinfer("run", job, "--set", "output.storage_options.retry_timeout=1").returncode == 69
    server.faults = [Fault("stale list", method="LIST", pattern="lake/out*", times=1, seconds=3600)]
    again = batchinfer("run", job)
    assert again.returncode in {0, 67}, again.stderr
    server.faults = []
    assert batchinfer("run", job).returncode == 0
    assert rows_of(server) == list(range(450))


def test_a_part_written_again_is_noticed(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """A part that somebody overwrites with as many bytes is named by the quick look at the listing."""
    write_shards(tmp_path / "in", [150])
    job = str(s3_job(tmp_path, server))
    assert batchinfer("run", job).returncode == 0
    (key, *_) = server.below("lake/out/part-")
    body = bytearray(server.objects[key].body)
    body[60] ^= 1
    server.put(key, bytes(body), server.objects[key].headers)
    told = batchinfer("verify", job)
    assert told.returncode == 65
    assert "its ETag changed" in told.stderr


def test_input_replaced_while_it_is_read(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """An input object that is replaced between the plan and the read ends the run with 65 and its name."""
    write_shards(tmp_path / "in", [450])
    body = (tmp_path / "in" / "shard-0.parquet").read_bytes()
    store = open_store("s3://lake/", server.options)
    store.put("s3://lake/in/a.parquet", body)
    job = doubling_job(
        tmp_path,
        input={"path": "s3://lake/in/*.parquet", "storage_options": written(server, retry_timeout=2)},
        model={"load_seconds": 2},
    )

    def replace() -> None:
        while not list((tmp_path / "out").rglob("plan.json")):
            time.sleep(0.01)
        store.put("s3://lake/in/a.parquet", body + b" ")

    threading.Thread(target=replace, daemon=True).start()
    refused = batchinfer("run", str(job))
    assert refused.returncode == 65, refused.stderr
    assert "s3://lake/in/a.parquet" in refused.stderr
    assert "changed after it was planned" in refused.stderr


def test_a_heartbeat_that_fails_is_no_matter(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """Where no sign of life can be given, the work goes on."""
    write_shards(tmp_path / "in", [450])
    server.faults = [Fault("503", pattern="*/hb/*")]
    sections = {
        "output": {"storage_options": written(server, retry_timeout=1)},
        "compute": {"heartbeat": 0.2},
    }
    done = batchinfer("run", str(s3_job(tmp_path, server, **sections, model={"seconds_per_batch": 0.1})))
    assert done.returncode == 0, done.stderr
    assert "no sign of life could be given" in done.stderr
    assert rows_of(server) == list(range(450))


@pytest.mark.parametrize("kind", ["apply then drop", "apply then 500", "drop", "409"])
def test_an_unclear_claim(server: FaultServer, tmp_path: Path, batchinfer: Run, kind: Any) -> None:
    """A claim whose reply was lost is read back: a block is done by whoever has it, or by somebody else."""
    write_shards(tmp_path / "in", [450])
    server.faults = [Fault(kind, pattern="*/claims/*", times=4)]
    job = s3_job(tmp_path, server, compute={"claims": "lease", "heartbeat": 0.5})
    done = batchinfer("run", str(job))
    assert done.returncode == 0, done.stderr
    assert rows_of(server) == list(range(450))


def test_an_error_is_no_page_of_xml(server: FaultServer, tmp_path: Path) -> None:
    """What a store says is told in one line, without the request's signature."""
    store = open_store("s3://lake/", {**server.options, "retry_timeout": 1})
    server.faults = [Fault("500", method="GET")]
    with pytest.raises(UnavailableError) as caught:
        store.read("s3://lake/x")
    assert "\n" not in caught.value.message
    assert "Signature" not in json.dumps([caught.value.message, caught.value.where])


def test_a_hundred_thousand_units_resume(server: FaultServer, tmp_path: Path, batchinfer: Run) -> None:
    """With 100,000 units of which all but three are committed, resuming costs at most 110 listings and 15 s
    until the first new row is computed, and opens no part."""
    write_shards(tmp_path / "in", [100_000], row_group=100_000)
    options = written(server, timeout=60)
    job = str(
        doubling_job(
            tmp_path,
            output={"path": "s3://lake/out", "storage_options": options},
            checkpoint={"unit_rows": 1},
            model={"seconds_per_batch": 0.01},
        )
    )
    server.faults = [Fault("forbidden", pattern="lake/out/part-*")]
    assert batchinfer("run", job).returncode == 77  # the plan is stored, and nothing is committed
    (plan8,) = {
        key.split("/")[3] for key in server.below("lake/out/_batchinfer/") if key.endswith("plan.json")
    }
    names = (f"lake/out/part-{unit:05d}-of-100000-{plan8}.parquet" for unit in range(100_000))
    server.fill(name for unit, name in enumerate(names) if unit % 33_333)
    server.requests.clear()
    server.faults = [Fault("forbidden", pattern="lake/out/part-*")]
    resumed = batchinfer("run", job, "--log-format", "json")
    assert resumed.returncode == 77, resumed.stderr
    assert server.requests["LIST"] <= 110, server.requests
    assert server.requests["GET"] + server.requests["HEAD"] <= 10, server.requests
    ready = [json.loads(line) for line in resumed.stderr.splitlines() if '"worker_ready"' in line]
    started = [json.loads(line) for line in resumed.stderr.splitlines() if '"run_started"' in line]
    assert started[0]["units_reused"] == 100_000 - 4
    assert ready
