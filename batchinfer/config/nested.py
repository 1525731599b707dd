"""Sections within sections of a job file."""

from __future__ import annotations

from typing import Annotated

from batchinfer.options import Field, JobPath, Options, neutral


class CanaryOptions(Options):
    """A golden batch, on which every device must give the results that it names."""

    path: JobPath
    """A Parquet file with columns `in.NAME` and `out.NAME` for the model's inputs and outputs, as `batchinfer
    preview JOB --save-canary FILE` writes it."""

    rtol: Annotated[float, Field(ge=0)] = 1e-3
    """How far a result may be off, relative to itself."""

    atol: Annotated[float, Field(ge=0)] = 1e-5
    """How far a result may be off, whatever it is."""


class RetryOptions(Options):
    """How often a call that failed for a passing reason is made again, before it counts as failed."""

    transient: Annotated[int, Field(ge=0)] = neutral(5)
    """Further attempts where a connection broke, or a service was busy or had trouble of its own."""

    timeout: Annotated[int, Field(ge=0)] = neutral(2)
    """Further attempts where nobody answered in time."""
