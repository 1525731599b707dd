"""Errors as lines of JSON: those of a run that asked for them, whoever refuses it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from batchinfer.events import Event, RunFailed

_OPTION = "--log-format"


class Told:
    """Knows whether the log of the run has said what ended it, so that the command does not say it again."""

    def __init__(self) -> None:
        self.is_told = False

    def on_event(self, event: Event) -> None:
        """Note that it is told."""
        self.is_told |= isinstance(event, RunFailed)

    def close(self) -> None:
        """Do nothing: it is asked after the end."""


TOLD = Told()
"""That of this process, which runs one command."""


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Tell whether a command line asks for JSON, also one that cannot be read as a whole."""
    asked = ""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name, equals, value = argument.partition("=")
        if name == _OPTION:
            asked = value if equals else following
    return asked == "json"


def error_line(failed: RunFailed, details: str = "") -> str:
    """Return the line that the log of a run has for an error; `details` is a traceback."""
    from batchinfer.telemetry.records import Record, as_json, of_event

    record = of_event(failed)
    if details:
        record = Record(record.event, {**record.fields, "details": details}, record.level)
    return as_json(record, job="", run=failed.run, wall_time=time.time())
