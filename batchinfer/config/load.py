"""From a job file to a `Job`: read, override, substitute, check; every problem in one report."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batchinfer.config.crosschecks import check_together
from batchinfer.config.error_section import ErrorsOptions
from batchinfer.config.guesses import guess_backend, guess_format
from batchinfer.config.job import Job
from batchinfer.config.limits import LimitsOptions
from batchinfer.config.mapping_tree import tree_of_mapping
from batchinfer.config.options_reader import OptionsReader
from batchinfer.config.overrides import apply_overrides
from batchinfer.config.problems import Problems, guess, quoted
from batchinfer.config.sections import (
    BatchingOptions,
    CheckpointOptions,
    ComputeOptions,
    JobHead,
    ObserveOptions,
)
from batchinfer.config.steps import read_steps
from batchinfer.config.substitution import substitute_params
from batchinfer.config.wording import unknown_key
from batchinfer.config.yaml_tree import MAX_BYTES, Tree, parse_job
from batchinfer.errors import JobFileError

SECTIONS = (
    *JobHead.model_fields,
    "params",
    "input",
    "preprocess",
    "model",
    "batching",
    "postprocess",
    "output",
    "checkpoint",
    "errors",
    "compute",
    "limits",
    "observe",
)
"""The keys at the top of a job file, in the order in which the documentation has them."""


def load_job(
    source: str | Path | Mapping[str, Any],
    *,
    params: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Job:
    """Load and check a job: a file, `-` for standard input, or a mapping (relative to the working
    directory). `overrides` are `key.path=value`. Raises JobFileError with every problem."""
    problems, tree, root = _read(source)
    problems.labels = apply_overrides(tree.value, overrides, problems)
    document, values = substitute_params(tree.value, params or {}, problems, written=tree.plain)
    return interpret(document, problems, root=root, params=values, written=tree.plain)


def _read(source: str | Path | Mapping[str, Any]) -> tuple[Problems, Tree, str]:
    """Return the tree of a source, and the folder that its paths are relative to."""
    if isinstance(source, Mapping):
        problems = Problems("job")
        return problems, tree_of_mapping(source, problems), str(Path.cwd())
    if str(source) == "-":
        problems = Problems("stdin")
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        return problems, parse_job(data, problems), str(Path.cwd())
    path = Path(source)
    problems = Problems(str(path))
    return problems, parse_job(_bytes(path), problems), str(path.absolute().parent)


def _bytes(path: Path) -> bytes:
    """Read a job file, at most a byte more than is allowed."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folder = path.parent
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        jobs = [name for name in names if name.endswith((".yaml", ".yml"))]
        near = guess(path.name, jobs)
        hint = f"job files there: {', '.join(jobs[:5])}" if jobs and not near else None
        raise JobFileError(f"{path}: there is no such file{near}", hint=hint) from None
    except IsADirectoryError:
        hint = f"{path / 'job.yaml'} exists" if (path / "job.yaml").is_file() else None
        raise JobFileError(f"{path}: is a folder, not a job file", hint=hint) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise JobFileError(f"{quoted(str(path))}: cannot be read: {why}") from None


def interpret(
    document: Mapping[str, Any],
    problems: Problems,
    *,
    root: str,
    params: Mapping[str, Any],
    written: Mapping[Any, str] | None = None,
) -> Job:
    """Check a document whose parameters are in, and return the job. Raises JobFileError."""
    document = copy.deepcopy(dict(document))
    known = dict.fromkeys(SECTIONS)
    reader = OptionsReader(problems, root=root, written=written or {})
    for key in document:
        if key not in known:
            problems.add((key,), unknown_key(key, known, reader.homes))
    head = reader.read(JobHead, {key: document[key] for key in JobHead.model_fields if key in document}, ())
    sections: dict[str, Any] = {
        "input": reader.component("sources", document, "input", "format", guess_format),
        "preprocess": read_steps(reader, "preprocessors", document, "preprocess"),
        "model": reader.component("backends", document, "model", "backend", guess_backend),
        "batching": reader.section(BatchingOptions, document, "batching"),
        "postprocess": read_steps(reader, "postprocessors", document, "postprocess"),
        "output": reader.component("sinks", document, "output", "format", lambda *_: "parquet"),
        "checkpoint": reader.section(CheckpointOptions, document, "checkpoint"),
        "errors": reader.section(ErrorsOptions, document, "errors"),
        "compute": reader.section(ComputeOptions, document, "compute"),
        "limits": reader.section(LimitsOptions, document, "limits"),
        "observe": reader.section(ObserveOptions, document, "observe"),
    }
    check_together(sections, problems)
    # The only place where problems become an error: before it, everything is looked at once.
    problems.raise_if_any()
    assert isinstance(head, JobHead)
    return Job(
        document=document,
        origin=problems.origin,
        root=root,
        name=head.job,
        version=head.version,
        description=head.description,
        labels=head.labels,
        params=params,
        places=problems.places,
        place_labels=problems.labels,
        **sections,
    )
