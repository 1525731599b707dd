"""One contract for every store: files, memory, and S3 as a real server speaks it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer.data import Block, Shard, Unit
from batchinfer.engine.commit import OutputLayout, UnitWriter
from batchinfer.engine.publish import Outcome, create_once, publish
from batchinfer.errors import DataError, UnavailableError, UnsafeStoreError
from batchinfer.runner.output import probe
from batchinfer.sinks.jsonl import JsonlOptions, JsonlSink
from batchinfer.storage import AlreadyExists, ObjectMissing, Store, open_store, split_glob
from batchinfer.storage.posix import PosixStore
from tests.conftest import Run, doubling_job, environment, parts_of, write_shards
from tests.storage.servers import Place

CANARY = "canary-7f3a9c-do-not-print"


# aiohttp would rather have a file than bytes.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body")
STORES = ["posix", "memory", "moto", "seaweedfs", "azurite", "fake_gcs"]


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, str]:
    """Return a store and an empty folder in it."""
    name = tmp_path.name.replace("[", "-").replace("]", "")
    if request.param == "posix":
        return open_store(str(tmp_path), {}), str(tmp_path / "root")
    if request.param == "memory":
        return open_store(f"memory://{name}", {}), f"memory://{name}/root"
    there: Place = request.getfixturevalue(request.param)
    return open_store(there.url, there.options), f"{there.url}/{name}/root"


def test_listing_and_globs(place: tuple[Store, str]) -> None:
    """Folders, files and globs list what they should, sorted; hidden names are left out of globs."""
    store, root = place
    assert store.entries(root) == []
    names = [
        "a=1/x.parquet",
        "a=2/y z.parquet",
        "a=2/deep/w.pq",
        "_meta/plan.json",
        ".tmp/x.parquet",
        "ünï%20.csv",
    ]
    for name in names:
        store.put(f"{root}/{name}", name.encode())

    def glob(pattern: str) -> list[str]:
        return [entry.uri.removeprefix(f"{root}/") for entry in store.glob(f"{root}/{pattern}".rstrip("/"))]

    everything = sorted(entry.uri.removeprefix(f"{root}/") for entry in store.entries(root))
    assert everything == sorted(names)
    assert glob("") == ["a=1/x.parquet", "a=2/deep/w.pq", "a=2/y z.parquet", "ünï%20.csv"]
    assert glob("a=*/*.parquet") == ["a=1/x.parquet", "a=2/y z.parquet"]
    assert glob("**/*.p[aq]*") == ["a=1/x.parquet", "a=2/deep/w.pq", "a=2/y z.parquet"]
    assert glob("a=?/x.parquet") == ["a=1/x.parquet"]
    assert glob("a=1/x.parquet") == ["a=1/x.parquet"]
    assert glob("a=2") == ["a=2/deep/w.pq", "a=2/y z.parquet"]
    assert glob("a=[!1]/*z*") == ["a=2/y z.parquet"]
    assert glob("nothing/*.parquet") == []


def test_create_is_once(place: tuple[Store, str]) -> None:
    """The second create of a name is refused and changes nothing; of eight at once, one wins."""
    store, root = place
    store.create(f"{root}/one", b"first")
    with pytest.raises(AlreadyExists):
        store.create(f"{root}/one", b"second")
    assert store.read(f"{root}/one") == b"first"
    store.create(f"{root}/empty", b"")
    assert store.read(f"{root}/empty") == b""

    def race(number: int) -> bool:
        try:
            store.create(f"{root}/raced", str(number).encode())
        except AlreadyExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert sum(won) == 1
    assert store.read(f"{root}/raced") == str(won.index(True)).encode()


def test_put_read_delete(place: tuple[Store, str]) -> None:
    """Put replaces, read returns all bytes, delete is done twice without harm, what is gone is missing."""
    store, root = place
    data = os.urandom(5_000_000)
    store.put(f"{root}/big", b"small")
    store.put(f"{root}/big", data)
    assert store.read(f"{root}/big") == data
    store.delete(f"{root}/big")
    store.delete(f"{root}/big")
    with pytest.raises(ObjectMissing):
        store.read(f"{root}/big")


def test_open_reads_parquet_of_the_planned_version(place: tuple[Store, str]) -> None:
    """Pyarrow reads through it; another version of the object than the planned one is refused."""
    store, root = place
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"n": range(1000)}), out)
    store.put(f"{root}/a.parquet", out.getvalue())
    (entry,) = store.glob(f"{root}/a.parquet")
    file = pq.ParquetFile(store.open(entry.uri, version=entry.version), pre_buffer=True)
    assert file.read().num_rows == 1000
    store.put(f"{root}/a.parquet", out.getvalue().to_pybytes() + b" ")
    with pytest.raises(DataError, match="changed after it was planned"):
        store.open(entry.uri, version=entry.version)


def test_the_probe_passes(place: tuple[Store, str]) -> None:
    """Each of these stores keeps the promise that commits rest on, and nothing is left of the probe."""
    store, root = place
    probe(store, root, commit="conditional")
    assert store.entries(root) == []


class Scripted(PosixStore):
    """A store whose creates do what a script says: `applied` or `lost`, then an error."""

    def __init__(self, *script: str) -> None:
        self.script = list(script)
        self.clock = Hurried()

    def create(self, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:
        """Do the next thing of the script."""
        step = self.script.pop(0) if self.script else "works"
        if step in {"applied", "works"}:
            super().create(uri, data)
        if step != "works":
            raise UnavailableError("the connection was reset", where=uri)


@pytest.mark.parametrize("script", [[], ["applied"], ["lost"], ["lost", "applied"], ["lost", "lost", "lost"]])
def test_an_unclear_answer_is_read_back(tmp_path: Path, script: list[str]) -> None:
    """Applied or not, a write whose answer was lost ends as one object, known to be ours."""
    assert create_once(Scripted(*script), str(tmp_path / "x"), b"ours") is True
    assert (tmp_path / "x").read_bytes() == b"ours"


def test_anothers_write_is_known_as_such(tmp_path: Path) -> None:
    """A name that holds other bytes was somebody else's: not ours, and left as it is."""
    (tmp_path / "x").write_bytes(b"theirs")
    assert create_once(PosixStore(), str(tmp_path / "x"), b"ours") is False
    assert (tmp_path / "x").read_bytes() == b"theirs"


def test_a_store_that_stays_away_is_an_error(tmp_path: Path) -> None:
    """A store that never answers ends with its error after a few tries."""
    with pytest.raises(UnavailableError, match="connection was reset"):
        create_once(Scripted(*["lost"] * 90), str(tmp_path / "x"), b"ours")


class Hurried:
    """A clock on which waiting takes no time."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        """Return the seconds that were waited."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Have waited."""
        self._now += seconds


class Lying(PosixStore):
    """A store that overwrites where it should refuse."""

    def create(self, uri: str, data: Any, *, stamp: Mapping[str, str] | None = None) -> None:
        """Overwrite."""
        self.put(uri, data)


def test_a_store_that_lies_is_refused(tmp_path: Path) -> None:
    """A store that ignores the condition is found out by the probe, unless the job declares what it can."""
    with pytest.raises(UnsafeStoreError, match="only if its name is free"):
        probe(Lying(), str(tmp_path / "out"), commit="conditional")
    probe(Lying(), str(tmp_path / "out"), commit="single-writer")


def test_stamps_are_kept(place: tuple[Store, str]) -> None:
    """A stamp comes back as it was given, or not at all where a store keeps none; a missing object is missing."""
    store, root = place
    stamp = {"attempt": "0123abcd", "sha256": "f" * 64, "rows": "17"}
    store.create(f"{root}/x", b"data", stamp=stamp)
    found = store.stamp(f"{root}/x")
    assert not found or found.items() >= stamp.items()
    with pytest.raises(ObjectMissing):
        store.stamp(f"{root}/y")


def test_replace_is_compare_and_set(place: tuple[Store, str]) -> None:
    """An object is replaced at the version that was listed, and not at an older one."""
    store, root = place
    store.create(f"{root}/x", b"one")
    (entry,) = store.glob(f"{root}/x")
    store.replace(f"{root}/x", b"three", version=entry.version)
    assert store.read(f"{root}/x") == b"three"
    with pytest.raises(AlreadyExists):
        store.replace(f"{root}/x", b"four", version=entry.version)
    assert store.read(f"{root}/x") == b"three"
    with pytest.raises((AlreadyExists, ObjectMissing)):
        store.replace(f"{root}/none", b"x", version=entry.version)


def test_two_publishers(place: tuple[Store, str]) -> None:
    """Of several that publish other bytes under one name at once, one has won, and all know it."""
    store, root = place

    def race(number: int) -> Outcome:
        data = f"attempt {number}".encode()
        return publish(store, f"{root}/raced", data, stamp={"attempt": str(number)})

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(race, range(4)))
    assert outcomes.count(Outcome.WON) == 1
    assert outcomes.count(Outcome.OTHER) == 3
    assert store.read(f"{root}/raced") == f"attempt {outcomes.index(Outcome.WON)}".encode()


def test_many_objects_are_all_listed(place: tuple[Store, str]) -> None:
    """A listing has every object, over its pages, sorted, with sizes and times."""
    store, root = place
    num_objects = 300 if "weed" in root or "gcs" in root else 1_100
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(
                lambda number: store.put(f"{root}/{number:05d}", b"x" * (number % 3)), range(num_objects)
            )
        )
    found = store.entries(root)
    assert [entry.uri for entry in found] == [f"{root}/{number:05d}" for number in range(num_objects)]
    assert [entry.size_bytes for entry in found] == [number % 3 for number in range(num_objects)]
    assert store.leftovers(root, now=max(entry.modified for entry in found)) == []


@pytest.mark.parametrize("server", ["seaweedfs", "azurite", "fake_gcs"])
def test_a_run_on_every_server(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    batchinfer: Run,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
) -> None:
    """The whole command writes to each server, killed and resumed, forced anew, verified and cleared up."""
    there: Place = request.getfixturevalue(server)
    options = dict(there.options)
    for name in ("secret", "account_key", "token"):
        if name in options:
            monkeypatch.setenv("LAKE_SECRET", options[name])
            options[name] = "${env:LAKE_SECRET}"
    write_shards(tmp_path / "in", [450])
    output = {"path": f"{there.url}/{tmp_path.name}/out", "carry": ["id"], "storage_options": options}
    job = str(doubling_job(tmp_path, output=output))
    settings = {**environment(), "BATCHINFER_CRASH": "commit.after:3", "BATCHINFER_TESTING": "1"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", "batchinfer", "run", job, "--set", "compute.stall_timeout=60"],
            capture_output=True,
            text=True,
            check=False,
            env=settings,
            timeout=120,
        )
        settings = environment()
    assert done.returncode == 0, done.stderr
    forced = batchinfer("run", job, "--force")
    assert forced.returncode == 0, forced.stderr
    assert batchinfer("gc", job, "--delete").returncode == 0
    verified = batchinfer("verify", "--deep", job)
    assert verified.returncode == 0, verified.stderr
    assert "450 rows" in verified.stdout


def test_a_server_that_lies(
    rclone: Place, tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real server that ignores conditions is refused with 73, and its output folder left as it was."""
    write_shards(tmp_path / "in", [50])
    monkeypatch.setenv("LAKE_SECRET", "testsecret")
    options = {**rclone.options, "secret": "${env:LAKE_SECRET}"}
    output = {"path": f"{rclone.url}/out", "carry": ["id"], "storage_options": options}
    refused = batchinfer("run", str(doubling_job(tmp_path, output=output)))
    assert refused.returncode == 73, refused.stderr
    assert open_store(rclone.url, rclone.options).entries(f"{rclone.url}/out") == []


@pytest.mark.parametrize("commit", ["deterministic", "single-writer"])
def test_any_other_store_has_no_conditional_writes(tmp_path: Path, batchinfer: Run, commit: str) -> None:
    """A store that fsspec serves is refused with 73, until the job declares what it can promise; then it is
    said what that means, and the output is complete."""
    write_shards(tmp_path / "in", [250])
    output = {"path": f"local://{tmp_path}/out", "carry": ["id"]}
    refused = batchinfer("run", str(doubling_job(tmp_path, output={**output, "storage_options": {}})))
    assert refused.returncode == 73, refused.stderr
    assert "commit: deterministic" in refused.stderr
    assert parts_of(tmp_path / "out") == {}
    job = str(doubling_job(tmp_path, output={**output, "storage_options": {}, "commit": commit}))
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert f"output.commit: {commit}" in done.stderr
    assert batchinfer("verify", "--deep", job).returncode == 0
    forced = batchinfer("run", job, "--force")
    assert forced.returncode == (78 if commit == "deterministic" else 0), forced.stderr


def test_a_model_that_is_not_deterministic_is_found_out(tmp_path: Path) -> None:
    """Where parts may be overwritten, a part with other bytes than before is an error, not a second truth."""
    layout = OutputLayout(
        root=str(tmp_path), plan8="0" * 8, num_units=1, suffix=".jsonl", partition_by=(), records=False
    )
    shard = Shard(
        index=0, uri="a", key="a", size_bytes=1, version="v", blocks=(Block(num_rows=1, num_bytes=1),)
    )
    for value in (1, 2):
        writer = UnitWriter(
            Unit(index=0, shard=shard, start=0, stop=1),
            layout=layout,
            sink=JsonlSink(JsonlOptions(path="unused")),
            store=Lying(),
            metadata={},
            deterministic=True,
        )
        writer.write(pa.table({"y": [value]}))
        if value == 1:
            assert writer.commit().won
        else:
            with pytest.raises(DataError, match="declares it deterministic"):
                writer.commit()


def test_splitting_globs() -> None:
    """The fixed folder of a pattern ends before the first magic letter."""
    assert split_glob("s3://b/a/dt=*/*.pq") == ("s3://b/a", "dt=*/*.pq")
    assert split_glob("/data/x.pq") == ("/data/x.pq", "")
    assert split_glob("/*.pq") == ("/", "*.pq")
    assert split_glob("a?/b") == (".", "a?/b")


def test_a_run_from_s3_to_s3(
    moto: Place, tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command over S3, credentials from the environment: complete, resumed, and no secret anywhere."""
    write_shards(tmp_path / "in", [250])
    store = open_store("s3://lake", moto.options)
    s3 = moto.options["endpoint_url"]
    base = f"s3://lake/{tmp_path.name}"
    store.put(f"{base}/in/a.parquet", (tmp_path / "in" / "shard-0.parquet").read_bytes())
    monkeypatch.setenv("LAKE_SECRET", CANARY)
    secret = {"endpoint_url": s3, "access_key_id": "k", "secret_access_key": "${env:LAKE_SECRET}"}
    job = str(
        doubling_job(
            tmp_path,
            input={"path": f"{base}/in/*.parquet", "storage_options": secret},
            output={"path": f"{base}/out", "storage_options": secret},
        )
    )
    done = batchinfer("run", job, "--log-format", "json")
    assert done.returncode == 0, done.stderr
    again = batchinfer("run", job)
    assert "nothing left to do" in again.stderr
    verified = batchinfer("verify", "--deep", job)
    assert verified.returncode == 0, verified.stderr
    parts = [store.read(entry.uri) for entry in store.glob(f"{base}/out/*.parquet")]
    rows = [row for part in parts for row in pq.read_table(pa.BufferReader(part))["id"].to_pylist()]
    assert rows == list(range(250))
    said = done.stdout + done.stderr + again.stdout + again.stderr + verified.stdout
    assert CANARY not in said
    assert all(CANARY.encode() not in store.read(entry.uri) for entry in store.entries(base))
    assert parts_of(tmp_path / "in")
