"""A window with a command in it, as a person has it: what it shows, and what becomes of it when it is resized."""

from __future__ import annotations

import codecs
import fcntl
import os
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pyte

from tests.conftest import environment

_PATIENCE_S = 60.0


class Window:
    """Runs the command in a pseudo terminal. Where it becomes narrower, lines that are too long go on in the
    next row, as in most terminals."""

    def __init__(self, *arguments: str, columns: int, lines: int = 24, **variables: str) -> None:
        self._master, self._slave = os.openpty()
        self._set_size(columns, lines)
        kept = {key: value for key, value in environment().items() if key not in {"NO_COLOR", "COLUMNS"}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "batchinfer", *arguments],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**kept, "TERM": "xterm-256color", **variables},
            start_new_session=True,
            preexec_fn=self._take_terminal,  # noqa: PLW1509 - Ctrl-C must reach it; one system call
        )
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.raw = ""
        self._new_screen(columns, lines)

    def _take_terminal(self) -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def _new_screen(self, columns: int, lines: int) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._emulator = pyte.Stream(self._screen)

    def lines(self) -> list[str]:
        """Return what is on the screen now, without the empty lines below."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip("\n").split("\n")

    def wait_for(self, what: Callable[[list[str]], bool]) -> list[str]:
        """Wait until the screen shows something, and return it."""
        deadline = time.monotonic() + _PATIENCE_S
        while not what(self.lines()):
            assert time.monotonic() < deadline, "\n".join(self.lines())
            self._read(0.1)
        return self.lines()

    def _read(self, timeout: float) -> None:
        if select.select([self._master], [], [], timeout)[0]:
            text = self._decoder.decode(os.read(self._master, 1 << 16))
            self.raw += text
            self._emulator.feed(text)

    def resize(self, columns: int, lines: int = 24) -> None:
        """Make it wider or narrower."""
        self._read(0.0)
        before = self.lines()
        self._set_size(columns, lines)
        self._new_screen(columns, lines)
        self._emulator.feed("\r\n".join(before))
        os.killpg(self.process.pid, signal.SIGWINCH)

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self._master, keys.encode())

    def end(self) -> int:
        """Wait for the end of the command, and return its exit code."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "\n".join(self.lines())
            self._read(0.05)
        while select.select([self._master], [], [], 0.1)[0]:
            self._read(0.0)
        return self.process.returncode

    def close(self) -> None:
        """End the command if it is there still, and close the window."""
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)
