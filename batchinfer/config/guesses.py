"""What a path tells about its format, where it tells it for certain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from batchinfer import registry

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".jpg": "files",
    ".jpeg": "files",
    ".png": "files",
    ".webp": "files",
}
_COMPRESSED = (".gz", ".zst", ".bz2")
_BACKENDS = {".onnx": "onnx", ".pt2": "torch", ".pt": "torch", ".pth": "torch", ".safetensors": "torch"}


def guess_format(section: Mapping[str, Any], root: str) -> str:
    """Return the input format that the suffixes of `path` stand for; Parquet where they say nothing.

    Raises ValueError where several paths say different things.
    """
    del root
    value = section.get("path")
    paths = value if isinstance(value, list) else [value]
    found = {_format(path) for path in paths if isinstance(path, str)} - {None}
    if len(found) > 1:
        raise ValueError(f"the paths look like {' and '.join(sorted(map(str, found)))}; say which format")
    return next(iter(found), None) or "parquet"


def _format(path: str) -> str | None:
    name = PurePosixPath(path.lower())
    suffix = PurePosixPath(name.stem).suffix if name.suffix in _COMPRESSED else name.suffix
    return _FORMATS.get(suffix)


def guess_backend(section: Mapping[str, Any], root: str) -> str:
    """Return the backend that the model's path stands for. Raises ValueError where it is not certain."""
    path = section.get("path")
    known = ", ".join(registry.names("backends"))
    if isinstance(path, str):
        backend = _BACKENDS.get(PurePosixPath(path.lower()).suffix)
        if backend:
            return backend
        if (Path(root) / path / "config.json").is_file():
            return "transformers"
        raise ValueError(f"cannot be told from the model's path; say one of {known}")
    raise ValueError(f"is required where `model.path` does not tell it; one of {known}")
