"""Canaries: a text that must appear nowhere, and a file that must not come into being.

`assert_no_canary` looks into everything that a run leaves. A test of whole runs can ask for the fixture
`secret_canary` (or make it autouse in its conftest): import it from here.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SECRET = "CANARY/secret+5f1d0c7e"  # noqa: S105 - the bait
"""A secret with the characters that real ones have, and that URLs and JSON write otherwise."""

PERSON = "Erika Canary-Mustermann"
"""What a row holds, and nobody but the row's owner may read."""

VARIABLE = "BATCHINFER_TEST_CANARY"


def forms(canary: str) -> set[bytes]:
    """Return the ways in which a text may have been written down."""
    plain = canary.encode()
    return {
        plain,
        quote(canary).encode(),
        quote(canary, safe="").encode(),
        json.dumps(canary)[1:-1].encode(),
        base64.b64encode(plain),
        plain.hex().encode(),
    }


def assert_no_canary(folder: Path | None, *texts: str, canary: str = SECRET) -> None:
    """Fail where a text, or any file below a folder, holds the canary: in its name, its bytes, or (of a
    Parquet file) its metadata and its decoded columns."""
    for form in forms(canary):
        for text in texts:
            assert form not in text.encode(errors="surrogateescape"), f"the canary was printed:\n{text}"
    for path in sorted(folder.rglob("*")) if folder is not None else ():
        found = str(path.relative_to(str(folder))).encode() + (_content(path) if path.is_file() else b"")
        assert not any(form in found for form in forms(canary)), f"the canary is in {path}"


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:4] == b"PAR1":
        with suppress(pa.ArrowInvalid, OSError):
            file = pq.ParquetFile(path)
            rows = repr(file.read().to_pylist()).encode()
            return data + repr(file.metadata.metadata).encode() + str(file.schema_arrow).encode() + rows
    return data


@pytest.fixture
def secret_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a secret into the environment, as `${env:BATCHINFER_TEST_CANARY}`; the files that the test
    leaves may not hold it."""
    monkeypatch.setenv(VARIABLE, SECRET)
    yield SECRET
    assert_no_canary(tmp_path)


class Payload:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.target,))


def malicious_pickle(target: Path) -> bytes:
    """Return bytes that make `target` when they are unpickled."""
    return pickle.dumps(Payload(target))


@contextmanager
def watching_processes() -> Iterator[set[str]]:
    """Collect the command lines of every process that lives meanwhile, as `ps` shows them to anybody."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    seen.add((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            done.wait(0.1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join(5)
