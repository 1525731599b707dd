"""What the tests of this folder share: a place that malicious code would leave a trace in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a path that malicious code would make; after the test, it is still not there."""
    place = tmp_path_factory.mktemp("trap") / "ran"
    yield place
    assert not place.exists(), "code of a stranger was run"


@pytest.fixture(autouse=True)
def _path_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker in a thread puts the job's folder on the path of modules: only for its test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
