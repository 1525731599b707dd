"""Where an ONNX model keeps its weights, found by walking the file; nothing outside its folder is opened.

An ONNX file is a protobuf message, and a tensor in it may name another file. Only the tags that lead to
tensors are followed, in a memory map: weights are stepped over, not read.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Iterator
from pathlib import Path

from batchinfer.errors import AccessError, DataError, JobFileError

_LEADS_TO: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Message -> field number -> message inside, after onnx.proto (onnx.ai)."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_KEY, _VALUE = 1, 2


def check_onnx_files(path: str) -> str:
    """Refuse a model that is missing, truncated or no ONNX, or whose weights lie outside its folder.

    Returns the model's real path, links resolved: that folder is the one that was looked at.
    Raises JobFileError, AccessError or DataError naming the file.
    """
    model = Path(path).resolve()
    if not model.is_file():
        raise JobFileError(f"model.path: there is no file {path}")
    try:
        names = weights_files(model)
    except PermissionError:
        raise AccessError(f"{path} cannot be read: permission denied") from None
    except ValueError as error:
        raise DataError(
            f"{path} is not a whole ONNX model: {error}", hint="copy or export the model again"
        ) from error
    for name in names:
        if trouble := _trouble(model.parent, name):
            raise DataError(
                f"{path} keeps weights in {name!r}, which {trouble}: it is not loaded",
                hint="put the model and its weights as plain files (no links) into one folder of their own",
            )
    return str(model)


def weights_files(model: Path) -> list[str]:
    """Return the names of the files that a model's tensors lie in, sorted, as the model spells them.

    Raises ValueError for what is no whole ONNX model, or OSError.
    """
    return sorted(set(_locations(model)))


def _locations(model: Path) -> Iterator[str]:
    """Yield the file name of every tensor with external data. Raises ValueError where the file is damaged."""
    if not model.stat().st_size:
        raise ValueError("it is empty")
    with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found_graph = False
        # An explicit stack: a crafted file may nest deeper than Python's recursion goes.
        todo = [("model", 0, len(data))]
        while todo:
            kind, start, stop = todo.pop()
            if kind == "entry":
                yield from _location(data, start, stop)
                continue
            inside = _LEADS_TO[kind]
            for number, begin, end in _fields(data, start, stop):
                if number in inside:
                    found_graph |= inside[number] == "graph"
                    todo.append((inside[number], begin, end))
        if not found_graph:
            raise ValueError("it holds no graph")


def _location(data: mmap.mmap, start: int, stop: int) -> Iterator[str]:
    """Yield the value of a `location` entry of a tensor's external data."""
    parts = {number: data[begin:end] for number, begin, end in _fields(data, start, stop)}
    if parts.get(_KEY) == b"location":
        yield parts.get(_VALUE, b"").decode(errors="surrogateescape")


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, stop) of every length-delimited field of one message."""
    at = start
    while at < stop:
        tag, at = _varint(data, at, stop)
        number, kind = tag >> 3, tag & 7
        if not number:
            raise ValueError(f"byte {at} is no part of one")
        if kind == _VARINT:
            _, at = _varint(data, at, stop)
        elif kind in {_FIXED32, _FIXED64}:
            at += 4 if kind == _FIXED32 else 8
        elif kind == _BYTES:
            size, begin = _varint(data, at, stop)
            at = begin + size
            if at <= stop:
                yield number, begin, at
        else:
            raise ValueError(f"byte {at} is no part of one")
        if at > stop:
            raise ValueError(f"it ends {at - stop} bytes too early, or is damaged")


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """Return a variable-length integer and the position after it."""
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        if at + count >= stop:
            raise ValueError("it ends in the middle of a number")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return value, at + count + 1
    raise ValueError(f"byte {at} begins no number")


def _trouble(folder: Path, name: str) -> str | None:
    """Say why a weights file cannot be trusted to be the model's own, or None."""
    parts = Path(name).parts
    if not parts or "\0" in name:
        return "is no file name"
    if Path(name).is_absolute() or ".." in parts:
        return "leads out of the model's folder"
    return _link_trouble(folder, parts)


def _link_trouble(folder: Path, parts: tuple[str, ...]) -> str | None:
    """Say which part of the way to a file is a link or no file, or None."""
    place = folder
    for part in parts:
        place /= part
        try:
            status = place.lstat()
        except OSError:
            return "is not there"
        if stat.S_ISLNK(status.st_mode):
            return "is reached through a symbolic link"
    if not stat.S_ISREG(status.st_mode):
        return "is no regular file"
    return f"has {status.st_nlink} hard links" if status.st_nlink > 1 else None
