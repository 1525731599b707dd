"""Frames of length and checksum, in which processes talk to each other over pipes and sockets.

A process that dies in the middle of a frame, or writes into its line by accident, is noticed as such
instead of being misread.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from batchinfer.errors import BatchinferError

_HEADER = struct.Struct(">II")


class BrokenChannel(BatchinferError):
    """The other side sent something that is no frame."""


def frame(body: bytes) -> bytes:
    """Return `body` with its length and checksum before it."""
    return _HEADER.pack(len(body), zlib.crc32(body)) + body


class Unframer:
    """Takes bytes as they come and gives bodies as they are complete."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the bodies that `data` completes. Raises BrokenChannel for a torn frame."""
        self._bytes += data
        while len(self._bytes) >= _HEADER.size:
            size, checksum = _HEADER.unpack_from(self._bytes)
            if len(self._bytes) < _HEADER.size + size:
                return
            body = bytes(self._bytes[_HEADER.size : _HEADER.size + size])
            if zlib.crc32(body) != checksum:
                raise BrokenChannel("a message between two processes is damaged")
            del self._bytes[: _HEADER.size + size]
            yield body
