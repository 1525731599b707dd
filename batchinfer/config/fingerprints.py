"""What the output depends on, as one digest and as parts that two jobs can be compared by."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from batchinfer.config.entries import find_module
from batchinfer.config.fields import affects_output, is_job_path, is_marked, values_by_key
from batchinfer.config.files import check_files
from batchinfer.config.hashing import content_sha256, external_files
from batchinfer.config.job import Job
from batchinfer.config.problems import KeyPath
from batchinfer.config.wording import value_at
from batchinfer.options import Code, Content, Options

FORMAT = 1
"""Version of the fingerprint itself: a change here makes every earlier output a different job's."""

OUTPUT_FORMAT = 1
"""Version of what is written: names, metadata, the columns of `_error`."""

_ENGINES = {"onnx": ("onnxruntime",), "torch": ("torch",), "transformers": ("transformers", "torch")}
_DISTRIBUTIONS = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
_SECTIONS = ("input", "model", "batching", "output", "checkpoint", "errors")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`digest` is the sha256 of `parts`, which are JSON-able and hold no secret."""

    digest: str
    parts: dict[str, Any]


def fingerprint(job: Job, *, model_files: Mapping[str, str] | None = None) -> Fingerprint:
    """Return what determines a job's output: every field that counts, defaults filled in, with
    models and code by their content. `model_files` are further files (name -> sha256).

    Raises JobFileError where a model, tokenizer or module is missing.
    """
    check_files(job)
    parts: dict[str, Any] = {
        "format": {"fingerprint": FORMAT, "output": OUTPUT_FORMAT, "job": job.version},
        "engine": _engine(job),
    }
    for section in _SECTIONS:
        parts[section] = _options(getattr(job, section), (section,), job)
    for section in ("preprocess", "postprocess"):
        steps = getattr(job, section)
        parts[section] = [{step.name: _options(step.options, step.path, job)} for step in steps]
    if model_files:
        parts["model_files"] = dict(sorted(model_files.items()))
    return Fingerprint(digest_of(parts), parts)


def digest_of(parts: Mapping[str, Any]) -> str:
    """Return the sha256 of values as canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _options(options: Options, path: KeyPath, job: Job) -> dict[str, Any]:
    """Return the fields of some options that count, by name."""
    result: dict[str, Any] = {}
    for name, field, value in values_by_key(options):
        at = (*path, name)
        if not affects_output(field):
            continue
        if value is not None and is_marked(field, Content):
            is_onnx = at == ("model", "path") and job.model.backend == "onnx"
            result[name] = _each(value, _onnx if is_onnx else _content)
        elif value is not None and is_marked(field, Code):
            result[name] = _each(value, lambda entry: _code(entry, job.root))
        elif value is not None and is_job_path(field):
            # As written: the folder that a job lies in, and the variables, may change.
            written = value_at(job.document, at)
            result[name] = written if isinstance(written, str | list) else value
        else:
            result[name] = _plain(value, at, job)
    return result


def _plain(value: Any, path: KeyPath, job: Job) -> Any:
    if isinstance(value, Options):
        return _options(value, path, job)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, (*path, str(key)), job) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, index), job) for index, item in enumerate(value)]
    return value


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, change) for item in value]
    return change(value)


def _content(path: Any) -> Any:
    """Return the content of a file or folder in place of its path."""
    if not isinstance(path, str):
        return path
    return _onnx(path) if path.endswith(".onnx") else {"sha256": content_sha256(path)}


def _onnx(path: str) -> dict[str, str]:
    """Return the content of an ONNX model and of the files that its weights lie in, by their names below
    the model's folder."""
    folder = Path(path).resolve().parent
    files = {file.relative_to(folder).as_posix(): str(file) for file in external_files(path)}
    return {"sha256": content_sha256(path)} | {name: content_sha256(file) for name, file in files.items()}


def _code(entry: Any, root: str) -> Any:
    """Return an entry point with the content of its module, or the version of its distribution."""
    if not isinstance(entry, str) or ":" not in entry:
        return entry
    module = entry.partition(":")[0]
    place = find_module(module, root)
    if not place.installed:
        files = {file.as_posix(): content_sha256(str(file)) for file in place.files}
        # The folder may move: names count from the module's own.
        names = {name.rpartition(f"/{place.package}/")[2]: sha for name, sha in files.items()}
        return {"entry": entry, "sha256": digest_of(names) if len(names) > 1 else next(iter(names.values()))}
    version = _distribution_version(place.package)
    if version is None and place.file is not None:
        return {"entry": entry, "sha256": content_sha256(str(place.file))}
    return {"entry": entry, "version": version}


def _distribution_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(package, [])
        return metadata.version(names[0]) if names else None


def _engine(job: Job) -> dict[str, str]:
    """Return the minor versions of the libraries that compute the output, asked without importing them."""
    found = {}
    for library in ("pyarrow", *_ENGINES.get(job.model.backend, ())):
        for distribution in _DISTRIBUTIONS.get(library, (library,)):
            try:
                version = metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
            # Patch releases fix bugs and keep numbers; a minor release may not.
            found[library] = ".".join(re.split(r"[.+]", version)[:2])
            break
    return found


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what changed between two fingerprints, a line for each value: `batching.size 32 -> 64`."""
    before, after = dict(_flat(old, "")), dict(_flat(new, ""))
    names = list(dict.fromkeys([*before, *after]))
    lines = []
    for name in names:
        if before.get(name, _MISSING) != after.get(name, _MISSING):
            told = f"{name.removesuffix('.sha256')} content sha256" if name.endswith(".sha256") else name
            lines.append(
                f"{told} {_short(before.get(name, _MISSING))} -> {_short(after.get(name, _MISSING))}"
            )
    return lines


_MISSING = object()


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{name}[{index}]")
    else:
        yield name, value


def _short(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    if isinstance(value, str):
        return f"{value[:4]}…" if re.fullmatch(r"[0-9a-f]{64}", value) else value
    return json.dumps(value)
