"""A worker as the parent sees it: a process, its pipes, what it was given and what it last said."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from batchinfer.engine.blackbox import BlackBox
from batchinfer.lifeline import is_running
from batchinfer.runner.memory_guard import own_bytes
from batchinfer.runner.messages import Channel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batchinfer.engine.blackbox import Entry, Stage

_LINES_KEPT = 200
_LINES_OF_STACKS = 20_000
_LONGEST_LINE = 64 * 1024
_LAST_WORDS_S = 1.0
_LOADERS_S = 1.0
_LOADER = b"batchinfer.engine.loader_process"


class Worker(Protocol):
    """Where a worker runs. `output_fd` gives what it prints, or is None; one that cannot be killed ends with
    this process."""

    channel: Channel
    output_fd: int | None
    pid: int
    can_be_killed: bool

    def exit_code(self, timeout: float) -> int | None:
        """Wait for the end, at most so long; None while it runs. Negative: killed by that signal."""
        ...

    def drain(self, tail: LineTail) -> list[str]:
        """Read the last words of a worker that is gone."""
        ...

    def in_hand(self) -> list[Entry]:
        """Return the rows that it has in hand, or had when it died."""
        ...

    def passed(self) -> frozenset[Stage]:
        """Return the stages that have done some of its rows."""
        ...

    def own_bytes(self) -> int:
        """Return the memory that is its own and its loaders', in bytes; 0 where nobody can tell."""
        ...

    def dump(self) -> None:
        """Have it print the stacks of its threads, and die of it."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def close(self) -> None:
        """Free its pipes."""
        ...


def end_of(worker: Worker) -> int:
    """Return the exit code of a worker that is gone, or is then ended; negative: the signal that ended it."""
    code = worker.exit_code(timeout=5.0)
    if code is None:
        worker.kill()
        code = worker.exit_code(timeout=5.0)
    return -signal.SIGKILL if code is None else code


class ProcessWorker:
    """A worker in a process of its own: spawned, never forked."""

    def __init__(self, *, environment: Mapping[str, str]) -> None:
        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        output_read, output_write = os.pipe()
        box_fd = _box()
        command = [sys.executable, "-m", "batchinfer.runner.worker"]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [
                *command,
                str(down_read),
                str(up_write),
                str(-1 if box_fd is None else box_fd),
                str(os.getpid()),
            ],
            pass_fds=(down_read, up_write, *(() if box_fd is None else (box_fd,))),
            stdin=subprocess.DEVNULL,
            stdout=output_write,
            stderr=output_write,
            env={**os.environ, **environment},
        )
        # The child's ends must close here, or its death would not end our reads.
        self._box = None if box_fd is None else BlackBox(box_fd)
        for fd in (down_read, up_write, output_write, box_fd):
            if fd is not None:
                os.close(fd)
        self.channel = Channel(up_read, down_write)
        self.output_fd: int | None = output_read
        self.pid = self._process.pid
        self.can_be_killed = True
        self._loaders: list[int] = []
        self._loaders_at = 0.0

    def exit_code(self, timeout: float) -> int | None:
        """Wait for the end of the process, at most so long."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def drain(self, tail: LineTail) -> list[str]:
        """Read what is left in the pipe, without waiting: a grandchild may still hold it open."""
        lines: list[str] = []
        if self.output_fd is not None:
            os.set_blocking(self.output_fd, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(self.output_fd, 1 << 16):
                    lines += tail.feed(data)
        return lines

    def in_hand(self) -> list[Entry]:
        """Read its black box."""
        return [] if self._box is None else self._box.read()

    def passed(self) -> frozenset[Stage]:
        """Read its black box."""
        return frozenset() if self._box is None else self._box.passed()

    def own_bytes(self) -> int:
        """Add up what the kernel says of each process. Its loaders are looked for once a second, and when one
        is gone: that takes longer than all the rest."""
        found = list(map(own_bytes, self._loaders))
        if not all(found) or time.monotonic() - self._loaders_at > _LOADERS_S:
            self._loaders, self._loaders_at = _loaders_of(self.pid), time.monotonic()
            found = list(map(own_bytes, self._loaders))
        return own_bytes(self.pid) + sum(found)

    def dump(self) -> None:
        """Send SIGABRT, upon which Python prints where every thread stands; first to its loaders, one of
        which may be what it waits for. One after the other: they print into one pipe."""
        deadline = time.monotonic() + _LAST_WORDS_S
        for pid in _loaders_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
            while is_running(pid) and time.monotonic() < deadline:
                time.sleep(0.01)
        self._process.send_signal(signal.SIGABRT)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def close(self) -> None:
        """Close the pipes."""
        self.channel.close()
        if self._box is not None:
            self._box.close()
        if self.output_fd is not None:
            os.close(self.output_fd)


def _box() -> int | None:
    """Make a black box; without one, as where files may not grow, a row that kills is not found."""
    try:
        return BlackBox.create()
    except OSError:
        return None


def _loaders_of(pid: int) -> list[int]:
    """Return the loader processes of a worker."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        # What ends while we look is no loss.
        with contextlib.suppress(OSError):
            pids = map(int, children.read_text().split())
            found += [pid for pid in pids if _LOADER in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


class InlineWorker:
    """A worker in a thread of this process, for memory:// stores, which no other process can see."""

    def __init__(self) -> None:
        from batchinfer.runner.worker import serve

        down_read, down_write = os.pipe()
        up_read, up_write = os.pipe()
        self.channel = Channel(up_read, down_write)
        self.output_fd: int | None = None
        self.pid = os.getpid()
        self.can_be_killed = False
        self._code = 0

        def run() -> None:
            """Serve, in the thread."""
            # The other end of the pair is the inbox's: it reads until we close ours.
            try:
                self._code = serve(Channel(down_read, up_write))
            finally:
                os.close(up_write)

        self._thread = threading.Thread(target=run, name="worker", daemon=True)
        self._thread.start()

    def exit_code(self, timeout: float) -> int | None:
        """Wait for the thread."""
        self._thread.join(timeout)
        return None if self._thread.is_alive() else self._code

    def drain(self, tail: LineTail) -> list[str]:  # noqa: ARG002 - a thread prints where we print
        """Return nothing."""
        return []

    def in_hand(self) -> list[Entry]:
        """Return nothing: it dies with us."""
        return []

    def passed(self) -> frozenset[Stage]:
        """Return nothing."""
        return frozenset()

    def own_bytes(self) -> int:
        """Return nothing: its memory is ours."""
        return 0

    def dump(self) -> None:
        """Print where every thread stands."""
        faulthandler.dump_traceback()

    def kill(self) -> None:
        """Do nothing: a thread cannot be killed, and ends with the process."""

    def close(self) -> None:
        """Close the pipes."""
        self.channel.close()


class LineTail:
    """Cuts what a worker prints into lines, and keeps the last ones for an error message."""

    def __init__(self) -> None:
        self._rest = b""
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)

    def keep_more(self) -> None:
        """Keep more of them from now on: the stacks of many threads follow."""
        self.lines = deque(self.lines, maxlen=_LINES_OF_STACKS)

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that are complete."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            whole, self._rest = [*whole, self._rest], b""
        lines = [line.decode(errors="replace").rstrip("\r") for line in whole]
        self.lines.extend(lines)
        return lines
