"""The worker process: loads the model, checks the contract, runs units, and never outlives its parent.

It talks over the two pipes it is started with. What it prints goes to its parent's log.
"""

from __future__ import annotations

import base64
import faulthandler
import gc
import os
import queue
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from batchinfer import crash, lifeline
from batchinfer.engine.blackbox import BlackBox
from batchinfer.errors import ExitCode, Interrupted, to_message
from batchinfer.runner.messages import (
    Assign,
    Batches,
    BatchNote,
    Channel,
    Computed,
    Done,
    Expect,
    Failed,
    Measured,
    Message,
    Publish,
    Ready,
    Start,
    Stop,
    Tried,
    Try,
)
from batchinfer.runner.standby import prepare, warm_up

if TYPE_CHECKING:
    from batchinfer.data import OutputBatch, Unit
    from batchinfer.engine.contract import Contract
    from batchinfer.transient import Reason

_FLUSH_S = 0.2
_KIB = 1024


class _Inbox:
    """Listens to the parent: units go into a queue, a stop ends it."""

    def __init__(self, channel: Channel, box: BlackBox | None) -> None:
        self._channel = channel
        self._units: queue.SimpleQueue[Unit | None] = queue.SimpleQueue()
        self._taken: list[Unit] = []
        self._assigned: list[Unit] = []
        self._on_arrival: Callable[[Unit], None] = lambda _: None
        self._arriving = threading.Lock()
        self._reader = 0
        self.stop = threading.Event()
        self.halt = threading.Event()
        """Set where the parent wants no more results."""
        self.may_publish = threading.Event()
        """Set once the plan stands."""
        self.trials: queue.SimpleQueue[Try | None] = queue.SimpleQueue()
        """What to measure, where this worker is here to `try`; None at the end."""
        self.spilled: set[int] = set()
        """Units that an earlier attempt may have put batches aside for."""
        messages = _some(channel)
        if isinstance(expected := messages[0], Expect):
            prepare(expected)
            messages = messages[1:] or _some(channel)
        start = messages[0]
        assert isinstance(start, Start)
        self.start = start
        # Late: it imports NumPy, which reads the environment.
        from batchinfer.engine.blame import Trust
        from batchinfer.engine.care import Care

        self._trust = Trust
        Trust.presumed = start.is_sound
        self.care = Care(box)
        self._take(messages[1:])
        threading.Thread(target=self._listen, name="inbox", daemon=True).start()

    def units(self, on_arrival: Callable[[Unit], None]) -> Iterator[Unit]:
        """Yield units as they are assigned, until the parent says that there are no more."""
        with self._arriving:
            self._on_arrival = on_arrival
            for unit in self._assigned:
                on_arrival(unit)
        return self._each()

    def _each(self) -> Iterator[Unit]:
        reader = self._reader
        yield from tuple(self._taken)
        while not self.stop.is_set() and reader == self._reader:
            try:
                unit = self._units.get(timeout=_FLUSH_S)
            except queue.Empty:
                continue
            if unit is None:
                self._units.put(None)  # for whoever comes next
                return
            self._taken.append(unit)
            yield unit

    def rewind(self) -> None:
        """End the iterator that is under way; the next one yields every unit again."""
        with self._arriving:
            self._on_arrival = lambda _: None
        self._reader += 1

    def _listen(self) -> None:
        while (messages := self._channel.receive()) is not None:
            self._take(messages)
        # The parent is gone: what it would have been told, the next listing tells.
        self.halt.set()
        self.stop.set()
        self.trials.put(None)
        os.close(self._channel.read_fd)

    def _take(self, messages: object) -> None:
        assert isinstance(messages, list)
        for message in messages:
            if isinstance(message, Assign):
                self.care.tell(message.unit.index, message.suspects, message.poison)
                if message.is_sound:
                    self._trust.presumed = True
                if message.spilled:
                    self.spilled.add(message.unit.index)
                with self._arriving:
                    self._assigned.append(message.unit)
                    self._on_arrival(message.unit)
                self._units.put(message.unit)
            elif isinstance(message, Publish):
                self.may_publish.set()
            elif isinstance(message, Try):
                self.trials.put(message)
            elif isinstance(message, Stop):
                self._units.put(None)
                if not message.drain:
                    self.halt.set()
                    self.stop.set()


def _some(channel: Channel) -> list[Message]:
    """Wait for the next messages. Raises EOFError where the parent is gone."""
    while not (messages := channel.receive()):
        if messages is None:
            raise EOFError("the parent was gone before it said what to do")
    return messages


class _Outbox:
    """Speaks to the parent, from any thread. Batch notes travel together, at most five times a second."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._notes: list[BatchNote] = []
        self._retries: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._flushed = time.monotonic()
        self.stages: Callable[[], Mapping[str, float]] = dict
        self.queues: Callable[[], dict[str, int]] = dict

    def on_batch(self, output: OutputBatch) -> None:
        """Note a forward pass."""
        note = BatchNote(
            rows=len(output.batch.rows),
            compute_s=output.compute_s,
            real_tokens=output.batch.real_tokens,
            padded_tokens=output.batch.padded_tokens,
            split=len(output.pieces) > 1 or bool(output.refused),
        )
        with self._lock:
            self._notes.append(note)
        self.on_done()

    def on_done(self) -> None:
        """Say from time to time that rows are done, also where a batch takes long because it failed."""
        if time.monotonic() - self._flushed > _FLUSH_S:
            self.flush()

    def on_computed(self, unit: Unit) -> None:
        """Say that a unit is being committed."""
        self._channel.send(Computed(unit=unit.index))

    def on_retry(self, reason: Reason) -> None:
        """Note that something is tried again, and say so at once: whoever waits makes progress too."""
        with self._lock:
            self._retries[reason] += 1
        self.flush()

    def flush(self) -> None:
        """Send what was noted."""
        with self._lock:
            notes, self._notes = tuple(self._notes), []
            retries, self._retries = dict(self._retries), Counter()
            self._flushed = time.monotonic()
        stages = dict(self.stages())
        if notes or stages or retries:
            self._channel.send(
                Batches(
                    notes=notes,
                    stages=stages,
                    peak_bytes=peak_bytes(),
                    retries=retries,
                    queues=self.queues(),
                )
            )

    def send(self, message: Ready | Done | Measured | Tried | Failed) -> None:
        """Send a message after the notes before it."""
        self.flush()
        self._channel.send(message)


def serve(channel: Channel, box: BlackBox | None = None) -> int:
    """Do what the parent says until it says stop. Returns the exit code; errors travel as messages."""
    inbox, outbox = _Inbox(channel, box), _Outbox(channel)
    try:
        _work(inbox, outbox)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        if isinstance(error, Interrupted) and inbox.halt.is_set():
            return ExitCode.OK
        message = to_message(error)
        outbox.send(Failed(**message))
        return int(message["exit_code"])
    return ExitCode.OK


def _work(inbox: _Inbox, outbox: _Outbox) -> None:
    # Late: the heavy libraries are loaded in the worker, once it knows its environment.
    from batchinfer.engine.canary import save_canary
    from batchinfer.engine.unit import measure, run_units
    from batchinfer.runner.assemble import assemble

    gc.enable()
    started = time.perf_counter()
    start = inbox.start
    with assemble(
        start,
        units=inbox,
        spilled=inbox.spilled,
        care=inbox.care,
        halt=inbox.halt,
        on_retry=outbox.on_retry,
    ) as assembly:
        outbox.send(
            Ready(
                inputs=tuple(assembly.backend.inputs),
                outputs=tuple(assembly.backend.outputs),
                output_schema=_packed(assembly.contract),
                settings=assembly.settings,
                load_s=time.perf_counter() - started,
                lanes=start.concurrency,
                hints=assembly.contract.hints if assembly.contract is not None else (),
            )
        )
        if assembly.way is None:
            return
        if start.purpose == "canary":
            assert assembly.contract is not None
            save_canary(start.canary, assembly.contract, assembly.way)
            return
        if start.purpose == "try":
            from batchinfer.runner.trials import Trials

            trials = Trials(start, assembly)
            for attempt in iter(inbox.trials.get, None):
                outbox.send(trials.run(attempt))
            return
        inbox.care.on_done = outbox.on_done
        outbox.stages = assembly.way.timeline.seconds
        outbox.queues = assembly.way.levels.num_bytes
        # What is there now stays: looking through it again and again would stop every thread.
        gc.freeze()
        run_units(
            assembly.way,
            on_batch=outbox.on_batch,
            on_computed=outbox.on_computed,
            on_commit=lambda receipt: outbox.send(Done(receipt=receipt)),
            stop=inbox.stop,
            may_publish=inbox.may_publish,
        )
        outbox.flush()
        # Not where the run was stopped: then somebody waits for the end.
        found = None if inbox.halt.is_set() else measure(assembly.way)
        if found is not None:
            outbox.send(Measured(rows=found.rows, seconds=found.seconds, model_s=found.model_s))


def _packed(contract: Contract | None) -> str | None:
    if contract is None:
        return None
    return base64.b64encode(contract.output.serialize().to_pybytes()).decode()


def peak_bytes() -> int:
    """Return the resident memory of this process at most so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def main() -> None:
    """Run as a process: `python -m batchinfer.runner.worker READ_FD WRITE_FD BOX_FD PARENT_PID`."""
    read_fd, write_fd, box_fd, parent = (int(argument) for argument in sys.argv[1:5])
    lifeline.die_with(parent)
    # While it imports: all of that stays, and is no garbage.
    gc.disable()
    crash.arm()
    warm_up()
    # A watchdog's SIGABRT, or a crash of native code, shows where every thread stood.
    faulthandler.enable()
    lifeline.leave_signals_to_parent()
    try:
        code = serve(Channel(read_fd, write_fd), BlackBox(box_fd) if box_fd >= 0 else None)
    except (BrokenPipeError, EOFError):
        code = ExitCode.CRASH
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through interpreter shutdown: a client library's leftover threads could hold it up.
    os._exit(code)


if __name__ == "__main__":
    main()
