"""The live display on a real pseudo terminal, seen through a terminal emulator."""

from __future__ import annotations

import codecs
import fcntl
import os
import select
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pyte
import pytest
from rich.text import Text

from batchinfer.events import Warned, WorkerSaid
from batchinfer.telemetry.devices import Devices
from batchinfer.telemetry.live import LiveProgress, Painter
from batchinfer.telemetry.stream import SafeStream

MARK = b"\x1e"


class Terminal:
    """A pseudo terminal and what it shows. Making it narrower breaks its lines, as most do."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        self.stream: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.raw = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._new_screen(columns, lines)

    def _new_screen(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.stream, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen = pyte.Screen(columns, lines)
        self._emulator = pyte.Stream(self._screen)

    def shows(self) -> list[str]:
        """Return the lines on the screen, without the empty ones below."""
        # The kernel passes data on when it likes: what was written before the mark has come with it.
        os.write(self.stream.fileno(), MARK)
        while not self.read(timeout=10):
            pass
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip("\n").split("\n")

    def read(self, *, timeout: float) -> bool:
        """Take what was written, wait for it at most so long, and say whether it ends with the mark."""
        assert select.select([self._master], [], [], timeout)[0] or timeout < 1, "nothing came"
        try:
            data = os.read(self._master, 1 << 16)
        except BlockingIOError:
            return False
        text = self._decoder.decode(data.removesuffix(MARK))
        self.raw += text
        self._emulator.feed(text)
        return data.endswith(MARK)

    def narrow(self, columns: int) -> None:
        """Make the window narrower: lines that are too long go on in the next row."""
        before = self.shows()
        self._new_screen(columns, self._screen.lines)
        self._emulator.feed("\r\n".join(before))

    def close(self) -> None:
        """Close both ends."""
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal of 80 by 24 with colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    found = Terminal()
    yield found
    found.close()


@pytest.fixture
def painter(terminal: Terminal) -> Painter:
    """A painter on that terminal."""
    return Painter(SafeStream(terminal.stream))


def texts(*lines: str) -> list[Text]:
    return [Text(line) for line in lines]


def test_a_drawing_replaces_the_one_before(terminal: Terminal, painter: Painter) -> None:
    """Only the latest lines are there, also where they are shorter or fewer than those before."""
    painter.draw(texts("first line, a long one", "second", "third"), above=[])
    assert terminal.shows() == ["first line, a long one", "second", "third"]
    painter.draw(texts("one", "two"), above=[])
    assert terminal.shows() == ["one", "two"]
    painter.draw(texts("one", "two", "three", "four"), above=[])
    assert terminal.shows() == ["one", "two", "three", "four"]


def test_a_drawing_does_not_flicker(terminal: Terminal, painter: Painter) -> None:
    """Lines are written over, and nothing is erased before what takes its place is there."""
    painter.draw(texts("one", "two"), above=[])
    terminal.shows()
    terminal.raw = ""
    painter.draw(texts("eins", "zwei"), above=[])
    terminal.shows()
    assert terminal.raw.index("eins") < terminal.raw.index("\x1b[K")
    assert terminal.raw.index("zwei") < terminal.raw.index("\x1b[J")


def test_lines_above_stay(terminal: Terminal, painter: Painter) -> None:
    """What a worker says scrolls away above the drawing, in order."""
    painter.draw(texts("drawing", "of two"), above=texts("hello"))
    painter.draw(texts("drawing", "of two"), above=texts("world"))
    assert terminal.shows() == ["hello", "world", "drawing", "of two"]


def test_many_lines_scroll(terminal: Terminal, painter: Painter) -> None:
    """At the bottom of the screen the drawing stays one drawing."""
    for number in range(40):
        painter.draw(texts("drawing", "of two"), above=texts(f"line {number}"))
    assert terminal.shows() == [*(f"line {number}" for number in range(18, 40)), "drawing", "of two"]


def test_a_window_may_become_narrower(terminal: Terminal, painter: Painter) -> None:
    """Lines that the terminal has broken are all taken back."""
    painter.draw(texts("x" * 79, "y" * 79, "z" * 30), above=texts("said"))
    terminal.narrow(40)
    assert len(terminal.shows()) == 6
    painter.draw(texts("x" * 39, "y" * 39), above=[])
    assert terminal.shows() == ["said", "x" * 39, "y" * 39]


def test_the_end_takes_the_place_of_the_drawing(terminal: Terminal, painter: Painter) -> None:
    """The last lines stand where the drawing was, and the cursor is below them."""
    painter.draw(texts("drawing", "of two"), above=texts("said"))
    painter.finish(texts("done"), above=texts("last words"))
    assert terminal.shows() == ["said", "last words", "done"]
    terminal.stream.write("$ ")
    terminal.stream.flush()
    assert terminal.shows()[-1] == "$"


def test_long_last_lines_are_broken_at_words(terminal: Terminal, painter: Painter) -> None:
    """A long line of the summary goes on below its first word."""
    painter.finish(texts("label     " + "word " * 30), above=[])
    first, second, third = terminal.shows()
    assert first == "label     " + " ".join(["word"] * 14)
    assert second == " " * 10 + " ".join(["word"] * 14)
    assert third == " " * 10 + "word word"


def test_no_colour_is_no_colour(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, painter: Painter
) -> None:
    """NO_COLOR is obeyed; without it there are colours."""
    painter.draw([Text("red", style="red")], above=[])
    terminal.shows()
    assert "\x1b[31m" in terminal.raw
    terminal.raw = ""
    monkeypatch.setenv("NO_COLOR", "1")
    Painter(SafeStream(terminal.stream)).draw([Text("red", style="red")], above=[])
    terminal.shows()
    assert "\x1b[31m" not in terminal.raw


def finished(run: Any, live: LiveProgress) -> None:
    run.hear.append(live.on_event)
    run.start(rows=100)
    run.ready()
    run.say(WorkerSaid(worker=0, line="\x1b[31mloading\x1b[0m"))
    run.say(Warned(code="oom", message="batch was split"))
    run.clock.now = 2.0
    run.commit(100)
    run.finish(rows_ok=100, rows_error=0, rows_filtered=0)
    live.close()


def test_a_run_leaves_the_summary(terminal: Terminal, run: Any, no_gpus: Devices) -> None:
    """After the end there are the words of workers, the warnings and the summary, and no drawing."""
    finished(run, LiveProgress(run.tally, stream=terminal.stream, devices=no_gpus))
    assert terminal.shows() == [
        "worker 0 | loading",
        "warning[oom]: batch was split",
        "done   embed   run 7f3a91c2   2.0 s",
        "rows      100 in = 100 ok + 0 error + 0 filtered",
        "speed     50 rows/s   1 worker   busy 0.0 %",
        "output    /data/out",
        "next      batchinfer verify /data/out",
    ]


def test_a_worker_that_says_too_much_is_cut_short(terminal: Terminal, run: Any, no_gpus: Devices) -> None:
    """Of thousands of lines between two drawings the last thousand are shown, and the others counted."""
    live = LiveProgress(run.tally, stream=terminal.stream, devices=no_gpus)
    for number in range(1500):
        live.on_event(WorkerSaid(worker=0, line=f"{number}."))
    reader = threading.Thread(target=live.close)
    reader.start()
    while reader.is_alive():
        terminal.read(timeout=0.05)
    terminal.shows()
    lines = terminal.raw.replace("\r", "").split("\n")
    assert "(500 lines are not shown)" in lines[0]
    assert "500." in lines[1]
    assert "1499." in lines[1000]


def test_a_run_that_never_began_leaves_nothing(terminal: Terminal, run: Any, no_gpus: Devices) -> None:
    """Where planning failed, the terminal is left to the error message."""
    live = LiveProgress(run.tally, stream=terminal.stream, devices=no_gpus)
    run.hear.append(live.on_event)
    run.finish(exit_code=66)
    live.close()
    assert terminal.shows() == [""]
    assert terminal.raw == ""


def test_a_warning_before_the_start_is_not_lost(terminal: Terminal, run: Any, no_gpus: Devices) -> None:
    """What is said while the run is being planned is there at the end at the latest."""
    live = LiveProgress(run.tally, stream=terminal.stream, devices=no_gpus)
    live.on_event(Warned(code="store", message="slow"))
    live.close()
    assert terminal.shows() == ["warning[store]: slow"]


def test_a_warning_may_have_several_lines(terminal: Terminal, run: Any, no_gpus: Devices) -> None:
    """Each line of a message has its own, and is as harmless as the first."""
    live = LiveProgress(run.tally, stream=terminal.stream, devices=no_gpus)
    live.on_event(Warned(code="late", message="does not fit\n  \x1b[31m→ cast it"))
    live.on_event(Warned(code="empty", message=""))
    live.close()
    assert terminal.shows() == ["warning[late]: does not fit", "  → cast it", "warning[empty]:"]


def test_a_tiny_window_shows_the_top(terminal: Terminal, painter: Painter) -> None:
    """Drawing again and again never runs out of the window."""
    painter.draw(texts("one"), above=[])
    for _ in range(5):
        painter.draw(texts("one", "two", "three"), above=[])
    assert terminal.shows() == ["one", "two", "three"]


@pytest.mark.parametrize("stream", ["closed", "none", "full"])
def test_a_broken_terminal_does_not_matter(
    stream: str, new_run: Callable[[], Any], no_gpus: Devices, tmp_path: Any
) -> None:
    """A stream that is closed, absent or full takes nothing away from the run."""
    run = new_run()
    if stream == "none":
        finished(run, LiveProgress(run.tally, stream=None, devices=no_gpus))
        return
    with open("/dev/full" if stream == "full" else tmp_path / "log", "w", encoding="utf-8") as file:
        if stream == "closed":
            file.close()
        finished(run, LiveProgress(run.tally, stream=file, devices=no_gpus))
    assert run.tally.snapshot().rows_ok == 100
