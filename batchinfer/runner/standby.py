"""A worker that starts before it is known what it will do: what it imports, it imports while its parent
reads the job and plans."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import TYPE_CHECKING, Self

from batchinfer import registry
from batchinfer.runner.messages import Expect
from batchinfer.runner.process import ProcessWorker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from batchinfer.config import Job


class Standby:
    """Starts a worker and keeps it until somebody takes it; closing ends one that nobody took."""

    def __init__(self) -> None:
        self._worker: ProcessWorker | None = None
        # Where no process can be started, whoever needs a worker will say so.
        with contextlib.suppress(OSError):
            self._worker = ProcessWorker(environment={})

    def expect(self, job: Job, environment: Mapping[str, str]) -> None:
        """Tell it what it will need, once that is known."""
        if self._worker is None:
            return
        components = [("sources", job.input.format), ("sinks", job.output.format)]
        components += [("preprocessors", step.name) for step in job.preprocess]
        components += [("postprocessors", step.name) for step in job.postprocess]
        components.append(("backends", job.model.backend))
        devices = job.compute.devices
        device = devices[0] if isinstance(devices, tuple) else "cpu"
        message = Expect(environment=dict(environment), components=tuple(components), device=device)
        # A broken pipe: it died, and `take` will see that.
        with contextlib.suppress(BrokenPipeError):
            self._worker.channel.send(message)

    def take(self) -> ProcessWorker | None:
        """Return the worker, once; None where there is none, or where it has died."""
        worker, self._worker = self._worker, None
        if worker is None or worker.exit_code(timeout=0) is None:
            return worker
        worker.close()
        return None

    def close(self) -> None:
        """End the worker, unless it was taken."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.exit_code(timeout=2.0)
            self._worker.close()
            self._worker = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def warm_up() -> None:
    """Import what every worker needs and what reads no environment: neither NumPy nor Arrow."""
    importlib.import_module("batchinfer.config")


def prepare(expected: Expect) -> None:
    """Import what a job needs, in its worker. What is not there will be missed when it is used."""
    os.environ.update(expected.environment)
    importlib.import_module("batchinfer.runner.assemble")
    for kind, name in expected.components:
        # Others are code of the user's, which runs when its turn has come.
        if name not in registry.BUILT_IN[kind]:
            continue
        with contextlib.suppress(Exception):
            component = registry.load(kind, name)
            # A worker with a GPU first moves next to it: threads stay where they began.
            for library in getattr(component, "libraries", ()) if expected.device == "cpu" else ():
                importlib.import_module(library)
