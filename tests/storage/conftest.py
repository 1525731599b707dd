"""Each server is started once, when the first test needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.storage import servers
from tests.storage.servers import Place


@pytest.fixture(scope="session")
def moto() -> Iterator[Place]:
    """Start moto."""
    with servers.moto() as place:
        yield place


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Start SeaweedFS."""
    with servers.seaweedfs(tmp_path_factory.mktemp("weed")) as place:
        yield place


@pytest.fixture(scope="session")
def azurite() -> Iterator[Place]:
    """Start Azurite."""
    with servers.azurite() as place:
        yield place


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[Place]:
    """Start fake-gcs-server."""
    with pytest.MonkeyPatch.context() as patch:
        # Without it each call of gcsfs first asks for something that the emulator lacks, for a minute.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        with servers.fake_gcs() as place:
            yield place


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Start the server that lies."""
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as place:
        yield place
