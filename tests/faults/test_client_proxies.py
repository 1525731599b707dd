"""Lost replies between other clients and their servers: Azure through obstore, GCS through gcsfs, S3
through s3fs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchinfer.engine.publish import Outcome, publish
from batchinfer.storage import AlreadyExists, Store, open_store, other
from batchinfer.storage.other import FsspecStore
from tests.conftest import Run, doubling_job, write_shards
from tests.faults.proxy import FaultProxy, Spoil
from tests.storage.servers import Place

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body")
KINDS = ["apply then drop", "apply then 500", "apply then 503", "drop", "503"]
CLIENTS = ["azurite", "fake_gcs", "s3fs"]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Iterator[tuple[FaultProxy, str, dict[str, Any]]]:
    """Return a proxy before a server, the URL of its bucket, and the options that lead through it."""
    place: Place = request.getfixturevalue("moto" if request.param == "s3fs" else request.param)
    key = "endpoint" if request.param == "azurite" else "endpoint_url"
    server, _, path = place.options[key].removeprefix("http://").partition("/")
    with FaultProxy(f"http://{server}") as proxy:
        options = {**place.options, key: f"{proxy.endpoint}/{path}".rstrip("/")}
        yield proxy, place.url, options


def opened(url: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Store:
    """Return the store; for S3, through s3fs."""
    if not url.startswith("s3"):
        return open_store(url, options)
    # Not how s3:// is served, but how any such client of fsspec would be.
    monkeypatch.setattr(other, "_CONDITIONAL", {"s3"})
    return FsspecStore(
        url, {**options, "use_listings_cache": False, "client_kwargs": {"region_name": "us-east-1"}}
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_reply_is_resolved(
    client: tuple[FaultProxy, str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Applied or not: the object is there once with our bytes, and another's is not taken for ours."""
    proxy, url, options = client
    store = opened(url, options, monkeypatch)
    name = f"{tmp_path.name}-{len(kind)}"
    proxy.spoils = [Spoil(kind, name, times=1)]
    outcome = publish(store, f"{url}/{name}/x", b"mine", stamp={"attempt": "me"})
    # Without a stamp, a client that has retried by itself cannot tell its own write from an equal one.
    assert outcome in ({Outcome.WON} if store.stamp(f"{url}/{name}/x") else {Outcome.WON, Outcome.SAME})
    assert proxy.spoiled == 1
    assert store.read(f"{url}/{name}/x") == b"mine"
    other_attempt = publish(store, f"{url}/{name}/x", b"theirs", stamp={"attempt": "they"})
    assert other_attempt is Outcome.OTHER
    with pytest.raises(AlreadyExists):
        store.create(f"{url}/{name}/x", b"again")
    assert store.read(f"{url}/{name}/x") == b"mine"


@pytest.mark.parametrize("kind", ["apply then drop", "apply then 503", "drop"])
@pytest.mark.parametrize("client", ["azurite", "fake_gcs"], indirect=True)
def test_a_run_with_lost_replies(
    client: tuple[FaultProxy, str, dict[str, Any]],
    tmp_path: Path,
    batchinfer: Run,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """The first commit of every part loses its reply: the output is complete, and each part is there once."""
    proxy, url, options = client
    for name in ("account_key", "token"):
        if name in options:
            monkeypatch.setenv("LAKE_SECRET", options[name])
            options[name] = "${env:LAKE_SECRET}"
    write_shards(tmp_path / "in", [450])
    proxy.spoils = [Spoil(kind, f"part-{unit:05d}", times=1) for unit in range(5)]
    output = {"path": f"{url}/{tmp_path.name}/out", "carry": ["id"], "storage_options": options}
    job = str(doubling_job(tmp_path, output=output))
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert "450 in = 450 ok" in done.stderr
    assert proxy.spoiled == 5
    verified = batchinfer("verify", "--deep", job)
    assert verified.returncode == 0, verified.stderr
    assert "5 parts, 450 rows" in verified.stdout
