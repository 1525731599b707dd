"""The log file of a run: every event as a line of JSON, beside whatever the terminal shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from batchinfer.errors import AccessError, JobFileError
from batchinfer.telemetry.lines import LineProgress

if TYPE_CHECKING:
    from batchinfer.telemetry.devices import Devices
    from batchinfer.telemetry.tally import Tally


class LogFile(LineProgress):
    """Appends a run to a file. What happens to the file later, a full disk or a folder that is gone, takes
    lines from it and nothing from the run."""

    def __init__(self, path: str, tally: Tally, *, devices: Devices, job: str, interval_s: float) -> None:
        self._file = _opened(path)
        super().__init__(
            tally,
            stream=self._file,
            devices=devices,
            job=job,
            interval_s=interval_s,
            log_format="json",
            units=True,
        )

    def close(self) -> None:
        """Write what is left, and close the file."""
        super().close()
        # Not under the hands of a thread that still waits for a slow disk.
        if self._is_done:
            self._file.close()


def _opened(path: str) -> TextIO:
    """Open a file to append to. Raises JobFileError, AccessError before anything else is begun."""
    try:
        return Path(path).open("a", encoding="utf-8")
    except PermissionError as error:
        raise AccessError("the log file may not be written", where=path) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise JobFileError(
            f"the log file cannot be opened: {why}",
            where=path,
            hint="name a file in a folder that is there: --log-file, or observe.log_file",
        ) from error
