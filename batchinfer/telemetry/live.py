"""Progress on a terminal: a few lines that are drawn over, at most four times a second."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import TYPE_CHECKING, TextIO, cast

from rich.console import Console
from rich.text import Text

from batchinfer.events import Event, Listening, RunStarted, SettingsChosen, Warned, WorkerSaid
from batchinfer.redact import redact
from batchinfer.telemetry import figures
from batchinfer.telemetry.fitting import LABEL
from batchinfer.telemetry.screen import frame
from batchinfer.telemetry.stream import SafeStream
from batchinfer.telemetry.summary import summary
from batchinfer.telemetry.ticker import Ticker

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Devices
    from batchinfer.telemetry.tally import Tally

_EVERY_S = 0.25
_PATIENCE_S = 5.0
_MAX_WAITING = 1000
_MAX_WIDTH = 160
_CLEAR_LINE, _CLEAR_BELOW = "\x1b[K", "\x1b[J"


class LiveProgress:
    """Draws a run on a terminal, prints what workers say above, and ends with the summary.

    Reads the numbers from `tally`, which must hear each event first.
    """

    def __init__(self, tally: Tally, *, stream: TextIO | None, devices: Devices) -> None:
        self._tally = tally
        self._devices = devices
        self._out = SafeStream(stream)
        self._painter = Painter(self._out)
        self._waiting: deque[Text] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        self._ticker = Ticker(self._tick, every_s=_EVERY_S, name="progress")

    def on_event(self, event: Event) -> None:
        """Take note; the drawing is done by a thread of its own."""
        match event:
            case RunStarted():
                self._ticker.start()
            case SettingsChosen(settings=settings):
                told = "   ".join(f"{name} {value}" for name, value in settings.items())
                self._say(Text.assemble(("settings".ljust(LABEL), "dim"), figures.plain(told)))
            case WorkerSaid(worker=worker, line=line):
                said = figures.plain(redact(line))
                # As it was printed: somebody may want to copy it.
                self._say(Text.assemble((f"worker {worker} | ", "dim"), said, no_wrap=True))
            case Listening(url=url):
                self._say(Text(f"metrics at {url}/metrics", style="dim"))
            case Warned(code=code, message=message):
                first, *more = redact(message).splitlines() or [""]
                self._say(Text.assemble((f"warning[{code}]: ", "yellow"), figures.plain(first)))
                for line in more:
                    self._say(Text(figures.plain(line)))
            case _:
                pass

    def close(self) -> None:
        """Leave the summary in place of the display."""
        self._ticker.start()
        self._ticker.stop(_PATIENCE_S)

    def _say(self, line: Text) -> None:
        with self._lock:
            if len(self._waiting) >= _MAX_WAITING:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(line)

    def _said(self) -> list[Text]:
        """Take the lines that wait; where there were too many, say how many are not shown."""
        with self._lock:
            lines, dropped = list(self._waiting), self._dropped
            self._waiting.clear()
            self._dropped = 0
        return [Text(f"({dropped} lines are not shown)", style="dim"), *lines] if dropped else lines

    def _tick(self, last: bool) -> None:  # noqa: FBT001 - the ticker calls it so
        snapshot = self._tally.snapshot()
        if last:
            self._painter.finish(summary(snapshot), above=self._said())
        elif snapshot.started:
            readings = self._devices.readings(snapshot)
            columns, lines = self._out.size()
            # One cell less than there is: a full line would move the cursor to the next one.
            width = min(columns - 1, _MAX_WIDTH)
            height = max(1, lines - 1)
            ascii_only = self._painter.ascii_only
            drawn = frame(snapshot, readings, width=width, height=height, ascii_only=ascii_only)
            self._painter.draw(drawn[:height], above=self._said())


class Painter:
    """Draws lines over those of the time before, in one write, erasing only what is left over."""

    def __init__(self, out: SafeStream) -> None:
        self._out = out
        # It only turns styles into colours, as many as the terminal has; nothing is printed with it.
        self._console = Console(
            file=cast("TextIO", out), highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._drawn: list[int] = []
        self._columns = 0

    @property
    def ascii_only(self) -> bool:
        """Whether the terminal cannot show more than ASCII."""
        return not self._out.encoding.lower().startswith("utf")

    def draw(self, lines: list[Text], *, above: list[Text]) -> None:
        """Replace what was drawn; `above` stays for good."""
        columns, _ = self._out.size()
        # A terminal that changes its width breaks lines, and forgets that only once they are erased.
        anew = above or columns != self._columns
        text = self._top() + (_CLEAR_BELOW if anew else "")
        text += "".join(f"{self._colours(line)}\n" for line in self._fitted(above, columns))
        text += f"{_CLEAR_LINE}\n".join(self._colours(line) for line in lines)
        self._out.write(text + _CLEAR_BELOW)
        self._drawn, self._columns = [line.cell_len for line in lines], columns

    def finish(self, lines: list[Text], *, above: list[Text]) -> None:
        """Erase what was drawn, and print lines in its place, broken where words end."""
        columns, _ = self._out.size()
        text = self._top() + _CLEAR_BELOW if self._drawn else ""
        text += "".join(f"{self._colours(line)}\n" for line in self._fitted([*above, *lines], columns))
        if text:
            self._out.write(text)
        self._drawn = []

    def _fitted(self, lines: list[Text], columns: int) -> list[Text]:
        return [piece for line in lines for piece in self._broken(line, columns)]

    def _broken(self, line: Text, columns: int) -> list[Text]:
        """Break a line that is too long; what follows stands below its first word."""
        if line.no_wrap or line.cell_len <= columns:
            return [line]
        label, rest = line.divide([LABEL])
        pieces = list(rest.wrap(self._console, max(20, columns - LABEL)))
        return [label + pieces[0], *(Text(" " * LABEL) + piece for piece in pieces[1:])]

    def _top(self) -> str:
        """Return what moves the cursor to where the last drawing begins.

        A window that became narrower has broken our lines into several.
        """
        columns, _ = self._out.size()
        rows = sum(max(1, math.ceil(cells / columns)) for cells in self._drawn)
        return "\r" + (f"\x1b[{rows - 1}A" if rows > 1 else "")

    def _colours(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", no_wrap=True, crop=False, overflow="ignore")
        return captured.get()
