"""Output that cannot fail: a closed pipe or a full disk never ends a run."""

from __future__ import annotations

import errno
import os
import select
from typing import TextIO

_PATIENCE_S = 1.0


class SafeStream:
    """Writes text to a stream, or drops it where the stream is closed, broken or full.

    Writes go to the file descriptor itself: text that Python keeps in a buffer because the disk is
    full would fail again at exit, and change the exit code.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._fd = _fd_of(stream)
        self._encoding = getattr(stream, "encoding", None) or "utf-8"

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return self._encoding

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return self._fd is not None and os.isatty(self._fd)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""

    def size(self) -> tuple[int, int]:
        """Return the columns and lines of the terminal, or 80 and 24."""
        try:
            found = os.get_terminal_size(self._fd if self._fd is not None else -1)
        except OSError:
            return 80, 24
        return found.columns or 80, found.lines or 24

    def write(self, text: str) -> None:
        """Write all of it, if anybody takes it."""
        if self._stream is None:
            return
        try:
            if self._fd is None:
                self._stream.write(text)
                self._stream.flush()
            else:
                self._write(self._fd, text.encode(self._encoding, "replace"))
        except OSError as error:
            # A full disk may have room later; a reader who is gone does not come back.
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN}:
                self._stream = None
        except ValueError:
            self._stream = None

    def _write(self, fd: int, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                # Somebody else made it non-blocking; give the reader a moment.
                if not select.select([], [fd], [], _PATIENCE_S)[1]:
                    raise


def _fd_of(stream: TextIO | None) -> int | None:
    """Return a stream's file descriptor, with nothing left in the buffer before it."""
    if stream is None:
        return None
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):
        return None
