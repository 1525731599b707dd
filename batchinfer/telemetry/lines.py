"""Progress where no person watches: one line per interval, never drawn over."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Literal, TextIO

from batchinfer.events import (
    Event,
    Listening,
    RunFailed,
    RunFinished,
    RunStarted,
    SettingsChosen,
    UnitCommitted,
    Warned,
    WorkerExited,
    WorkerReady,
    WorkerSaid,
)
from batchinfer.telemetry.records import (
    Record,
    as_json,
    as_text,
    of_event,
    progress,
    settings,
    unit_committed,
)
from batchinfer.telemetry.stream import SafeStream
from batchinfer.telemetry.summary import summary
from batchinfer.telemetry.ticker import Ticker

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Devices
    from batchinfer.telemetry.tally import Tally

_FLUSH_S = 1.0
_PATIENCE_S = 5.0
_MAX_WAITING = 10_000


class LineProgress:
    """Writes a run as lines of text (`key=value`) or JSON, for logs and pipes; with `units`, also a line for
    each unit that is committed.

    Reads the numbers from `tally`, which must hear each event first. Nobody has to read the lines:
    if the reader stops, the oldest are dropped and counted, and the run goes on.
    """

    def __init__(
        self,
        tally: Tally,
        *,
        stream: TextIO | None,
        devices: Devices,
        job: str,
        interval_s: float,
        log_format: Literal["text", "json"] = "text",
        units: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._tally = tally
        self._devices = devices
        self._out = SafeStream(stream)
        self._job, self._run = job, ""
        self._interval_s = interval_s
        self._json = log_format == "json"
        self._units = units
        self._at_work: dict[int, tuple[str, float]] = {}
        self._clock, self._wall_clock = clock, wall_clock
        self._began = self._last = clock()
        self._waiting: deque[str] = deque()
        self._dropped = 0
        self._is_done = False
        self._lock = Lock()
        self._ticker = Ticker(self.tick, every_s=min(_FLUSH_S, interval_s), name="progress")

    def on_event(self, event: Event) -> None:
        """Take note; the writing is done by a thread of its own."""
        match event:
            case RunStarted():
                self._run = event.run
                self._note(of_event(event))
                self._ticker.start()
            case RunFinished():
                snapshot = self._tally.snapshot()
                if snapshot.started:
                    self._note(progress(snapshot, self._devices.readings(snapshot)))
                self._note(of_event(event, snapshot))
            case SettingsChosen():
                self._note(settings(event))
            case WorkerReady():
                self._at_work[event.worker] = event.device, self._clock()
                self._note(of_event(event))
            case WorkerExited() | WorkerSaid() | Warned() | Listening():
                self._note(of_event(event))
            case RunFailed() if self._json:  # in text, the command has the last word
                self._run = self._run or event.run
                self._note(of_event(event))
            case UnitCommitted() if self._units:
                self._note(self._unit(event))
            case _:
                pass

    def _unit(self, event: UnitCommitted) -> Record:
        """A worker's device computes one unit after the other."""
        now = self._clock()
        device, since = self._at_work.get(event.worker, ("", now))
        self._at_work[event.worker] = device, now
        return unit_committed(event, device=device, seconds=now - since)

    def close(self) -> None:
        """Write what is left; in text, the summary after it."""
        self._ticker.start()
        self._is_done = self._ticker.stop(_PATIENCE_S)

    def tick(self, last: bool) -> None:  # noqa: FBT001 - the ticker calls it so
        """Write what is waiting, and a line of progress where one is due."""
        snapshot = self._tally.snapshot()
        now = self._clock()
        if snapshot.started and snapshot.finished is None and now - self._last >= self._interval_s:
            # Keep to the beat, however late this one is.
            self._last = now - (now - self._last) % self._interval_s
            self._note(progress(snapshot, self._devices.readings(snapshot)))
        with self._lock:
            lines, dropped = list(self._waiting), self._dropped
            self._waiting.clear()
            self._dropped = 0
        if dropped:
            lines.insert(0, self._format(Record("lines_dropped", {"lines": dropped}, level="warning")))
        for line in lines:
            self._out.write(line + "\n")
        if last and not self._json:
            self._out.write("".join(f"{line.plain}\n" for line in summary(snapshot)))

    def _note(self, record: Record) -> None:
        line = self._format(record)
        with self._lock:
            if len(self._waiting) >= _MAX_WAITING:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(line)

    def _format(self, record: Record) -> str:
        if self._json:
            return as_json(record, job=self._job, run=self._run, wall_time=self._wall_clock())
        return as_text(record, elapsed_s=self._clock() - self._began)
