"""Were the model's files the same when they were hashed and when they were loaded?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from batchinfer.config.files import content_paths
from batchinfer.config.hashing import external_files, visible_files
from batchinfer.errors import FingerprintError

if TYPE_CHECKING:
    from batchinfer.config import Job


def model_state(job: Job) -> dict[str, str]:
    """Return size, time of change and inode of every file whose content is in the fingerprint.

    Taken before the files are hashed and compared after they are loaded, it says that what was loaded
    is what was hashed, without hashing it again.
    """
    found: dict[str, str] = {}
    for _, path in content_paths(job):
        place = Path(path)
        files = visible_files(place) if place.is_dir() else [place, *external_files(path)]
        for file in files:
            try:
                stat = file.stat()
            except OSError:
                found[str(file)] = "gone"
            else:
                found[str(file)] = f"{stat.st_size:x}-{stat.st_mtime_ns:x}-{stat.st_ino:x}"
    return found


def require_unchanged(job: Job, before: dict[str, str]) -> None:
    """Raise FingerprintError where a model's file is another one than when the run began."""
    if not before:
        return
    now = model_state(job)
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        raise FingerprintError(
            "the model changed while the run was starting, so that what is loaded is not what was planned",
            where=changed[0],
            hint="run again, once nobody writes to the model any more",
        )
