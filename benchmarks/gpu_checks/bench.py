"""What a section gets: the device, a folder, the time that is left, and a place for what it finds."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEEDS_GPU = "needs a GPU"
NO_TIME = "no time was left"
NOISE = 0.02
"""An efficiency of so much above 1 is still taken for noise."""


class OutOfTime(Exception):
    """A section has no time for what comes next."""


@dataclass(slots=True)
class Bench:
    """One section of a run. What is noted is written at once, so that a killed section keeps it.

    `ends` is when its time is over, by `time.monotonic`.
    """

    section: str
    device: str
    tiny: bool
    folder: Path
    ends: float
    figures: dict[str, Any] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def on_gpu(self) -> bool:
        """Tell whether there is a GPU to measure."""
        return self.device.startswith("cuda")

    @property
    def half(self) -> str:
        """The precision of a run that could have any: half on a GPU, whole on a CPU."""
        return "fp16" if self.on_gpu else "fp32"

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions in which this device is measured."""
        return ("fp16", "bf16") if self.on_gpu else ("fp32",)

    def left_s(self, *, at_least: float = 0.0) -> float:
        """Return the seconds that are left. Raises OutOfTime where they are not enough."""
        left = self.ends - time.monotonic()
        if left <= at_least:
            raise OutOfTime(f"{self.section}: {max(left, 0):.0f} s are left, too few for what comes next")
        return left

    def note(self, name: str, value: Any) -> None:
        """Keep a figure."""
        self.figures[name] = value
        self.write()

    def needs_gpu(self, *names: str) -> None:
        """Note what cannot be found out here."""
        for name in names:
            self.note(name, NEEDS_GPU)

    def wrong(self, text: str) -> None:
        """Note a mistake that the run must not end well with; the section goes on."""
        self.wrongs.append(text)
        self.write()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Try one of several things: a failure is noted as a mistake, and the section goes on."""
        try:
            yield
        except (OutOfTime, subprocess.TimeoutExpired):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are tried
            traceback.print_exc()
            self.wrong(f"{what} failed: {type(error).__name__}: {error}")

    def write(self) -> None:
        """Write down what is known so far."""
        path = _path(self.folder, self.section)
        partial = path.with_suffix(".partial")
        with self.lock:
            partial.write_text(json.dumps({"wrong": self.wrongs, "figures": self.figures}))
            partial.replace(path)

    def of(self, section: str) -> dict[str, Any]:
        """Return the figures of an earlier section; none where it found nothing."""
        return dict(found_by(self.folder, section)["figures"])


def found_by(folder: Path, section: str) -> dict[str, Any]:
    """Return what a section has written down: `figures`, and what is `wrong`."""
    path = _path(folder, section)
    if not path.exists():
        return {"wrong": [], "figures": {}}
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _path(folder: Path, section: str) -> Path:
    return folder / f"section-{section.replace(' ', '-')}.json"
