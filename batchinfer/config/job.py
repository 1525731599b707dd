"""The checked job: one frozen tree, which knows where in its file each key stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchinfer.config.error_section import ErrorsOptions
from batchinfer.config.limits import LimitsOptions
from batchinfer.config.problems import KeyPath, Place, Problems
from batchinfer.config.sections import (
    BatchingOptions,
    CheckpointOptions,
    ComputeOptions,
    InputOptions,
    ModelOptions,
    ObserveOptions,
    OutputOptions,
)
from batchinfer.options import Options


@dataclass(frozen=True, slots=True)
class Step:
    """One step of `preprocess` or `postprocess`; `path` is its key path in the job file."""

    name: str
    options: Options
    path: KeyPath


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Job:
    """A job file that was checked.

    `document` is what the user wrote as plain JSON-able values, with parameters and overrides put
    in and `${env:NAME}` left as it is: safe to store and to print. `root` is the folder that
    relative paths and user modules are relative to. `resolved` has what `auto` became, and why.
    """

    document: Mapping[str, Any]
    origin: str
    root: str
    name: str
    version: int
    description: str | None
    labels: Mapping[str, str]
    params: Mapping[str, Any]
    input: InputOptions
    preprocess: tuple[Step, ...]
    model: ModelOptions
    batching: BatchingOptions
    postprocess: tuple[Step, ...]
    output: OutputOptions
    checkpoint: CheckpointOptions
    errors: ErrorsOptions
    compute: ComputeOptions
    limits: LimitsOptions
    observe: ObserveOptions
    places: Mapping[KeyPath, Place] = field(default_factory=dict)
    place_labels: Mapping[KeyPath, str] = field(default_factory=dict)
    resolved: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        # Options may hold the values of environment variables; a name and a file never do.
        return f"Job({self.name!r}, origin={self.origin!r})"

    def place(self, path: KeyPath) -> str:
        """Return `job.yaml:12:5` for a key path; for one that is absent, its nearest ancestor."""
        return Problems(self.origin, self.places, self.place_labels).place(path)

    def to_message(self) -> dict[str, Any]:
        """Return the job as JSON-able values for another process, without any secret."""
        return {
            "document": dict(self.document),
            "origin": self.origin,
            "root": self.root,
            "params": dict(self.params),
            "places": [[list(path), place.line, place.column] for path, place in self.places.items()],
            "place_labels": [[list(path), label] for path, label in self.place_labels.items()],
            "resolved": {name: [value, why] for name, (value, why) in self.resolved.items()},
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Job:
        """Rebuild a job; environment variables are read again, in this process.

        Raises JobFileError where a variable is missing here.
        """
        from batchinfer.config.load import interpret
        from batchinfer.config.machine import apply_resolved

        places = {tuple(path): Place(line, column) for path, line, column in message["places"]}
        labels = {tuple(path): label for path, label in message["place_labels"]}
        problems = Problems(message["origin"], places, labels)
        job = interpret(message["document"], problems, root=message["root"], params=message["params"])
        return apply_resolved(job, {name: (value, why) for name, (value, why) in message["resolved"].items()})
