"""One end of the line between a worker and a loader process: notes as JSON, rows in shared slabs.

Both ends are alike. Each owns the slabs that it writes into, and tells the other with every note which
slabs it has done with.
"""

from __future__ import annotations

import json
import os
import select
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from batchinfer.frames import Unframer, frame
from batchinfer.loader.slabs import Place, SlabReader, SlabWriter

if TYPE_CHECKING:
    import pyarrow as pa

_READ_BYTES = 1 << 16
_FDS_A_READ = 8


class Exchange:
    """Sends and receives notes, each with or without rows. Used by one thread at a time."""

    def __init__(self, line: socket.socket, *, peer: int | None = None) -> None:
        """`peer` is a pidfd of the other process: its end is noticed even where something that it
        started holds the line open."""
        self._line = line
        self._waiter = select.poll()
        for fd in (line.fileno(), peer):
            if fd is not None:
                self._waiter.register(fd, select.POLLIN)
        self._out = SlabWriter()
        self._in = SlabReader()
        self._frames = Unframer()
        self._bodies: deque[bytes] = deque()
        self._fds: deque[int] = deque()

    def send(self, note: Mapping[str, Any], rows: pa.RecordBatch | None = None) -> None:
        """Send a note. Raises OSError (BrokenPipeError and its like) when the other side is gone."""
        place, fd = (None, None) if rows is None else self._out.write(rows)
        body = {
            "note": note,
            "rows": None if place is None else astuple(place),
            "new": fd is not None,
            "released": self._in.released(),
        }
        data = frame(json.dumps(body).encode())
        sent = socket.send_fds(self._line, [data], [] if fd is None else [fd])
        self._line.sendall(memoryview(data)[sent:])

    def receive(self) -> tuple[dict[str, Any], pa.RecordBatch | None] | None:
        """Wait for a note; None when the other side is gone. Raises BrokenChannel for what is none."""
        while not self._bodies:
            if not self._more():
                return None
        body = json.loads(self._bodies.popleft())
        self._out.release(body["released"])
        if body["rows"] is None:
            return body["note"], None
        fd = self._fds.popleft() if body["new"] else None
        return body["note"], self._in.read(Place(*body["rows"]), fd)

    def close(self) -> None:
        """End the line. Rows that were received stay good."""
        self._line.close()
        for fd in self._fds:
            os.close(fd)
        self._out.close()
        self._in.close()

    def _more(self) -> bool:
        """Take what has arrived; False when nothing will any more."""
        ready = {fd for fd, _ in self._waiter.poll()}
        if self._line.fileno() not in ready:
            return False
        try:
            data, fds, _, _ = socket.recv_fds(self._line, _READ_BYTES, _FDS_A_READ, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return False
        self._fds.extend(fds)
        self._bodies.extend(self._frames.feed(data))
        return bool(data)
