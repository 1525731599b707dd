"""Writes a run's receipt beside its output when it begins, and again, with its report, when it has ended.
Never in the way of the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from batchinfer.errors import BatchinferError, ExitCode
from batchinfer.events import Event, PlanFollowed, WorkerReady
from batchinfer.telemetry.recording import Recording
from batchinfer.telemetry.ticker import Ticker

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.telemetry.devices import Devices
    from batchinfer.telemetry.snapshot import Snapshot
    from batchinfer.telemetry.tally import Tally

_EVERY_S = 1.0
_PATIENCE_S, _LITTLE_S = 30.0, 8.0
_EARLIER = 8


class Chronicle:
    """Records a run, and writes `_batchinfer/runs/RUN.json` and `.html`, and the report once more as
    `_batchinfer/report.html`, where people look for it.

    The receipt is written first when the run follows a plan: one that is killed has told that it was there.
    Reads the numbers from `tally`, which must hear each event first. A run that found nothing to do, or that
    never had a plan beside its output, leaves nothing. A store that does not take them costs one call
    of `warn` and half a minute; less after a run that was stopped, for somebody waits for its end.
    """

    def __init__(self, job: Job, tally: Tally, devices: Devices, *, warn: Callable[[str], None]) -> None:
        self._job = job
        self._tally = tally
        self._devices = devices
        self._warn = warn
        self.recording = Recording()
        self._ticker = Ticker(self._look, every_s=_EVERY_S, name="chronicle")
        self._opening: threading.Thread | None = None

    def on_event(self, event: Event) -> None:
        """Take note."""
        self.recording.on_event(event)
        if isinstance(event, WorkerReady) and event.device.startswith("cuda"):
            self._ticker.start()
        elif isinstance(event, PlanFollowed) and self._opening is None:
            begun = self.recording.opening(), self._tally.snapshot()
            self._opening = threading.Thread(target=self._open, args=begun, name="begun", daemon=True)
            self._opening.start()

    def close(self) -> None:
        """Write, where there is something to tell."""
        self._ticker.stop(_LITTLE_S)
        finished = self.recording.finished
        if finished is None or self.recording.plan is None:
            return
        failures: list[BaseException] = []
        # A daemon: a store that never answers must not keep the process.
        thread = threading.Thread(target=self._write, args=(failures,), name="receipt", daemon=True)
        thread.start()
        patience_s = _LITTLE_S if finished.exit_code == ExitCode.INTERRUPTED else _PATIENCE_S
        thread.join(patience_s)
        if thread.is_alive():
            self._warn(f"the output's store did not take the receipt within {patience_s:g} s; it is given up")
        elif failures:
            error = failures[0]
            why = error.message if isinstance(error, BatchinferError) else f"a bug: {type(error).__name__}"
            self._warn(f"the receipt of this run could not be written ({why}); the output is as it should be")

    def _look(self, last: bool) -> None:  # noqa: ARG002, FBT001 - the ticker calls it so
        self.recording.sample(self._devices.readings(self._tally.snapshot()))

    def _open(self, recording: Recording, snapshot: Snapshot) -> None:
        """Write the receipt of a run that has begun. If that fails, the end tries again, and tells."""
        from batchinfer.storage import open_store
        from batchinfer.telemetry.receipt import as_json, folder, receipt_of

        root = self._job.output.path
        with contextlib.suppress(Exception):
            receipt = as_json(receipt_of(self._job, recording, snapshot))
            store = open_store(root, self._job.output.storage_options)
            store.put(f"{folder(root)}/{snapshot.run}.json", receipt)

    def _write(self, failures: list[BaseException]) -> None:
        from batchinfer.storage import open_store
        from batchinfer.telemetry.receipt import as_json, folder, latest, receipt_of
        from batchinfer.telemetry.report import report

        try:
            snapshot, root = self._tally.snapshot(), self._job.output.path
            receipt = receipt_of(self._job, self.recording, snapshot)
            store = open_store(root, self._job.output.storage_options)
            earlier = latest(store, root, _EARLIER, but=snapshot.run)
            page = report(receipt, self.recording, snapshot, earlier).encode()
            place = f"{root.rstrip('/')}/_batchinfer/report.html"
            if self._opening is not None:
                self._opening.join()  # it must not come after this one, which is the last word
            store.put(f"{folder(root)}/{snapshot.run}.json", as_json(receipt))
            store.put(f"{folder(root)}/{snapshot.run}.html", page)
            store.put(place, page)
            self._tally.reported(place)
        except Exception as error:  # noqa: BLE001 - a job that is done does not fail for its receipt
            failures.append(error)
