"""Where the threads of a hung worker stood: kept beside the output, for whoever wants to know why it hung."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from batchinfer.errors import BatchinferError

if TYPE_CHECKING:
    from batchinfer.storage import Store

_HEADS = ("Fatal Python error", "Thread 0x", "Current thread", "  File ", "  ...", "  <no Python frame>")
_PATIENCE_S = 5.0


class Stacks:
    """Writes dumps below `_batchinfer/stacks/` of an output, each in a thread of its own: a slow store keeps
    nobody waiting, and one that fails only loses the dump."""

    def __init__(self, store: Store, root: str, run: str) -> None:
        self._store = store
        self._folder = f"{root.rstrip('/')}/_batchinfer/stacks"
        self._run = run
        self._threads: list[threading.Thread] = []

    def keep(self, worker: int, lines: Iterable[str]) -> str | None:
        """Keep the stacks among what a worker printed, and nothing else of it. Returns where they will be;
        None where there are none."""
        stacks = [line for line in lines if line.startswith(_HEADS)]
        if not stacks:
            return None
        uri = f"{self._folder}/{self._run}-worker-{worker}-{len(self._threads)}.txt"
        data = "\n".join([*stacks, ""]).encode()
        thread = threading.Thread(target=self._put, args=(uri, data), name="stacks", daemon=True)
        self._threads.append(thread)
        thread.start()
        return uri

    def _put(self, uri: str, data: bytes) -> None:
        try:
            self._store.put(uri, data)
        except BatchinferError:
            # The log has the gist of it.
            return

    def close(self) -> None:
        """Wait a little for what is under way."""
        for thread in self._threads:
            thread.join(_PATIENCE_S)
