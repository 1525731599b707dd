"""Content by its sha256: files, folders, and the files that an ONNX model keeps its weights in."""

from __future__ import annotations

import hashlib
from pathlib import Path

from batchinfer.errors import AccessError, ContractError, DataError
from batchinfer.onnx_files import weights_files

_CHUNK_BYTES = 1024 * 1024
_cache: dict[tuple[str, int, int, int], str] = {}


def content_sha256(path: str) -> str:
    """Return the sha256 of a file; of a folder, that of its names and files, hidden ones left out.

    Hex, 64 digits. Remembered for this process by path, size and time of change. Raises
    ContractError where nothing is there, AccessError, or DataError where it cannot be read.
    """
    place = Path(path)
    try:
        if place.is_dir():
            return _folder_sha256(place)
        return _file_sha256(place)
    except FileNotFoundError:
        raise ContractError(f"there is no file {path}") from None
    except PermissionError:
        raise AccessError(f"{path} cannot be read: permission denied") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _cache:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        _cache[key] = digest.hexdigest()
    return _cache[key]


def _folder_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in visible_files(folder):
        name = file.relative_to(folder).as_posix()
        digest.update(f"{len(name.encode())}:{name}:{_file_sha256(file)}\n".encode())
    return digest.hexdigest()


def visible_files(folder: Path) -> list[Path]:
    """Return the files below a folder, sorted by name, without those below hidden names."""
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def external_files(model: str) -> list[Path]:
    """Return the files beside an ONNX model that its tensors name as the place of their weights.

    Names that lead out of the model's folder, and files that are no whole model, are left to the
    backend, which refuses them.
    """
    path = Path(model).resolve()
    try:
        names = weights_files(path)
    except (OSError, ValueError):
        return []
    inside = (name for name in names if "\0" not in name and ".." not in Path(name).parts)
    return sorted(
        file
        for file in (path.parent / name for name in inside if not Path(name).is_absolute())
        if file.is_file()
    )
