"""The memory of this process's control groups: a container's, a service's, a batch job's."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class ControlGroup:
    """What the kernel says of the group that will be full first: the one with the smallest limit of this
    process's own and those above it, in version 1 or 2 of control groups.

    `limit` is how much memory it may have, in bytes; 0 where there is no limit, or nobody can tell. `path` is
    where this process is below the mount, unless the kernel is to be asked.
    """

    def __init__(self, root: Path = _ROOT, path: str | None = None) -> None:
        is_second = (root / "cgroup.controllers").exists()
        base = root if is_second else root / "memory"
        own = base / (_path_of("" if is_second else "memory") if path is None else path)
        # In a container the path may be the host's, and the mount begins at the group itself.
        above = (folder for folder in (own, *own.parents) if folder == base or base in folder.parents)
        groups = [folder for folder in above if (folder / "memory.stat").exists()] or [base]
        name = "memory.max" if is_second else "memory.limit_in_bytes"
        limits = [(_number(folder / name), folder) for folder in reversed(groups)]
        limited = [one for one in limits if 0 < one[0] < memory_of_machine()]
        # Of equal ones the outermost, which has more in it.
        self.limit, self._folder = min(limited, key=lambda one: one[0], default=(0, groups[0]))
        self._used = self._folder / ("memory.current" if is_second else "memory.usage_in_bytes")
        self._pages = ("anon", "shmem") if is_second else ("total_rss", "total_shmem")
        # Our own group's, whatever group was full: version 1 counts a process nowhere else.
        self._kills = groups[0] / ("memory.events" if is_second else "memory.oom_control")

    def used(self) -> int:
        """Return the memory that the group has, in bytes, with what the kernel can take back: a number that
        is quickly read. 0 where nobody can tell."""
        return _number(self._used)

    def held(self) -> int:
        """Return the memory that the kernel cannot take back, in bytes; 0 where nobody can tell."""
        said = _table(self._folder / "memory.stat")
        return sum(said.get(name, 0) for name in self._pages)

    def num_kills(self) -> int:
        """Return how many processes of our own group the kernel has ended for want of memory."""
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
        # Bare: one that is asked fifty times a second takes half as long so.
        with path.open("rb", buffering=0) as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
