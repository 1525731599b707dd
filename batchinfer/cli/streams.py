"""The three streams that a process is started with, or without."""

from __future__ import annotations

import os


def occupy() -> None:
    """Put nothing in the place of standard streams that were closed: else the next pipe that is opened takes
    their numbers, and a worker's own output goes over it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
