"""Offline batch inference: one command, one YAML file, exactly-once output, no cluster.

import batchinfer

report = batchinfer.run_job("job.yaml", batching__size=128)
print(report.rows_ok, report.output)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchinfer.errors import BatchinferError, ExitCode

if TYPE_CHECKING:
    from batchinfer.protocols import Observer
    from batchinfer.runner.report import RunReport

__all__ = ["BatchinferError", "ExitCode", "RunReport", "run_job"]


def run_job(
    job: str | Path | Mapping[str, Any],
    *,
    params: Mapping[str, str] | None = None,
    observers: Sequence[Observer] = (),
    shard: str | None = None,
    force: bool = False,
    measure: bool = False,
    **overrides: Any,
) -> RunReport:
    """Run a job from Python: a job file's path, or the same tree as a mapping.

    `params` fill `${param:NAME}`; `overrides` set keys, with two underscores for the dot
    (`batching__size=128`). Relative paths in a mapping are relative to the working directory.
    `observers` hear the run's events; without any, nothing is printed. `shard` ("i/n") does every n-th
    unit from i on, `force` begins a new generation of the output, `measure` compares the run with its model
    alone, at the end. Run it again to resume.

    Raises a `BatchinferError` whose `exit_code` is what the command would have exited with:
    JobFileError, NoInputError, DataError, FingerprintError, DeviceError, BudgetExceeded and others.
    """
    import json

    from batchinfer.config import Machine, load_job, usable_cores
    from batchinfer.hardware import gpus
    from batchinfer.runner.job import run
    from batchinfer.runner.shares import Share, share_of
    from batchinfer.telemetry import recorders

    settings = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in overrides.items()]
    loaded = load_job(job, params=params or {}, overrides=settings)
    machine = Machine(cores=usable_cores(), gpus=tuple(gpu.name for gpu in gpus()))
    share = Share() if shard is None else share_of(shard)
    everyone = [*recorders(loaded, observers), *observers]
    return run(loaded, machine, everyone, share=share, force=force, measure=measure)


def __getattr__(name: str) -> Any:
    """Import `RunReport` when it is asked for: importing batchinfer itself costs nothing."""
    if name == "RunReport":
        from batchinfer.runner.report import RunReport

        return RunReport
    raise AttributeError(f"module 'batchinfer' has no attribute {name!r}")
