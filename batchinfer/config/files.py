"""Models, tokenizers and code that a job names: are they there? Every missing one at once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchinfer.config.fields import is_marked, values_by_key
from batchinfer.config.job import Job
from batchinfer.config.problems import KeyPath, Problems, guess, quoted
from batchinfer.options import Content, Options


def check_files(job: Job) -> None:
    """Check that every model, tokenizer and the like exists and can be read.

    Raises JobFileError naming each that does not, with its place and the nearest name there.
    """
    problems = Problems(job.origin, job.places, job.place_labels)
    for path, value in content_paths(job):
        wrong = _file_problem(value, job.root)
        if wrong is not None:
            problems.add(path, wrong)
    problems.raise_if_any()


def content_paths(job: Job) -> Iterator[tuple[KeyPath, str]]:
    """Yield every path of a job whose content counts, with its key path."""
    sections: list[tuple[KeyPath, Options]] = [(("input",), job.input), (("model",), job.model)]
    sections += [(step.path, step.options) for step in (*job.preprocess, *job.postprocess)]
    for path, options in [*sections, (("output",), job.output)]:
        yield from _marked(options, path)


def _marked(options: Options, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    for key, field, value in values_by_key(options):
        yield from _texts(value, (*path, key), marked=is_marked(field, Content))


def _texts(value: Any, path: KeyPath, *, marked: bool) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, Options):
        yield from _marked(value, path)
    elif isinstance(value, str) and marked:
        yield path, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index), marked=marked)
    elif isinstance(value, dict) and marked:
        for key, item in value.items():
            yield from _texts(item, (*path, str(key)), marked=marked)


def _file_problem(value: str, root: str) -> str | None:
    """Say why a file cannot be used, if it cannot."""
    if "://" in value:
        return f"{quoted(value)} is a URL; it must be on the local disk"
    place = Path(value)
    shown = os.path.relpath(value, root) if place.is_relative_to(root) else value
    try:
        if place.exists():
            return None if os.access(place, os.R_OK) else f"{quoted(shown)} cannot be read: permission denied"
        folder = place.parent
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        return f"{quoted(shown)} cannot be read: {error.strerror}"
    return f"there is no {quoted(shown)}{guess(place.name, names)}"
