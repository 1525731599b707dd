"""The memory of this process's control group: a container's, a service's, a batch job's."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class ControlGroup:
    """What the kernel says of a group, in version 1 or 2 of control groups.

    `limit` is how much memory the group may have, in bytes; 0 where there is no limit, or nobody can tell.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        is_second = (root / "cgroup.controllers").exists()
        base = root if is_second else root / "memory"
        path = _path_of("" if is_second else "memory")
        # In a container the path may be the host's, and the mount begins at the group itself.
        self._folder = base / path if (base / path / "memory.stat").exists() else base
        self._kills = self._folder / ("memory.events" if is_second else "memory.oom_control")
        self._pages = ("anon", "shmem") if is_second else ("total_rss", "total_shmem")
        limit = _number(self._folder / ("memory.max" if is_second else "memory.limit_in_bytes"))
        self.limit = limit if limit < memory_of_machine() else 0

    def held(self) -> int:
        """Return the memory that the kernel cannot take back, in bytes; 0 where nobody can tell."""
        said = _table(self._folder / "memory.stat")
        return sum(said.get(name, 0) for name in self._pages)

    def num_kills(self) -> int:
        """Return how many processes the kernel has ended because the group had no memory left."""
        return _table(self._kills).get("oom_kill", 0)


def memory_of_machine() -> int:
    """Return the machine's memory, in bytes; 0 where nobody can tell."""
    try:
        return int(Path("/proc/meminfo").read_text().partition("MemTotal:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 0


def memory_here() -> int:
    """Return the memory that this container or machine may use, in bytes; 0 where nobody can tell."""
    return ControlGroup().limit or memory_of_machine()


def _path_of(controller: str) -> str:
    """Return where this process is below the mount of a controller; that of version 2 has no name."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller in names.split(","):
            return path.lstrip("/")
    return ""


def _table(path: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in path.read_text().splitlines()]
        return {name: int(value) for name, value in pairs}
    except (OSError, ValueError):
        return {}


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
