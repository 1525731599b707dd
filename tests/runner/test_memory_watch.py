"""Whose memory is it? What is read of control groups, and who is ended before one is full."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from batchinfer.runner.control_group import ControlGroup
from batchinfer.runner.memory_guard import MemoryGuard
from batchinfer.runner.memory_watch import MemoryWatch

MIB = 1 << 20
HUGE = 9223372036854771712


def second(root: Path, groups: dict[str, tuple[str, int, int]]) -> Path:
    """Make a tree of version 2: a limit, bytes that are held, and deaths for each folder."""
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory\n")
    for name, (limit, held, kills) in groups.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{held + 7 * MIB}\n")
        (folder / "memory.stat").write_text(f"anon {held - MIB}\nfile {9 * MIB}\nshmem {MIB}\n")
        (folder / "memory.events").write_text(f"low 0\noom 5\noom_kill {kills}\n")
    return root


def first(root: Path, groups: dict[str, tuple[str, int, int]]) -> Path:
    """Make one of version 1."""
    for name, (limit, held, kills) in groups.items():
        folder = root / "memory" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.limit_in_bytes").write_text(f"{HUGE if limit == 'max' else limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{held + 7 * MIB}\n")
        (folder / "memory.stat").write_text(f"rss 1\ntotal_rss {held - MIB}\ntotal_shmem {MIB}\n")
        (folder / "memory.oom_control").write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
    return root


Tree = Callable[[Path, dict[str, tuple[str, int, int]]], Path]


@pytest.mark.parametrize("tree", [first, second])
def test_the_smallest_limit_above_counts(tmp_path: Path, tree: Tree) -> None:
    """As with Slurm, where the job has a limit and its tasks have none: what the job holds counts, and the
    dead of the task itself. Of equal limits the outermost counts, for more is in it."""
    root = tree(
        tmp_path / "cgroup",
        {
            "job_7": (str(300 * MIB), 250 * MIB, 3),
            "job_7/step_0": (str(300 * MIB), 200 * MIB, 3),
            "job_7/step_0/user": (str(900 * MIB), 150 * MIB, 3),
            "job_7/step_0/user/task_0": ("max", 100 * MIB, 1),
        },
    )
    group = ControlGroup(root, "job_7/step_0/user/task_0")
    assert (group.limit, group.held(), group.num_kills()) == (300 * MIB, 250 * MIB, 1)
    assert group.used() == 257 * MIB


@pytest.mark.parametrize("tree", [first, second])
def test_a_container_sees_only_its_own_group(tmp_path: Path, tree: Tree) -> None:
    """Its path is the host's, and where the mount begins is the group itself."""
    root = tree(tmp_path / "cgroup", {".": (str(300 * MIB), 200 * MIB, 2)})
    group = ControlGroup(root, "kubepods/burstable/pod1/abc")
    assert (group.limit, group.held(), group.num_kills()) == (300 * MIB, 200 * MIB, 2)


@pytest.mark.parametrize("tree", [first, second])
def test_no_limit_is_told_as_none(tmp_path: Path, tree: Tree) -> None:
    """Nowhere up the tree, or more than the machine has; nor does a machine without such files have one."""
    root = tree(tmp_path / "cgroup", {"a": (str(1 << 60), 200 * MIB, 0), "a/b": ("max", 100 * MIB, 4)})
    group = ControlGroup(root, "a/b")
    assert (group.limit, group.held(), group.num_kills()) == (0, 100 * MIB, 4)
    nothing = ControlGroup(tmp_path / "nothing", "a")
    assert (nothing.limit, nothing.used(), nothing.held(), nothing.num_kills()) == (0, 0, 0, 0)


@dataclass
class Group:
    """A control group with a limit of 1,000 MiB, of which others than workers hold some."""

    workers: list[FakeWorker] = field(default_factory=list)
    others: int = 0
    limit: int = 1000 * MIB
    kills: int = 0
    stale: int = 0
    looked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def held(self) -> int:
        """Add it up, unless the kernel has not."""
        self.looked.release()
        return self.stale * MIB or self.others * MIB + sum(worker.own_bytes() for worker in self.workers)

    def used(self) -> int:
        """Say that files take the rest."""
        return self.limit

    def num_kills(self) -> int:
        """Return how many the kernel has ended."""
        return self.kills


@dataclass
class FakeWorker:
    """One that has taken some memory."""

    mib: int
    can_be_killed: bool = True
    ended: threading.Event = field(default_factory=threading.Event)

    def own_bytes(self) -> int:
        """Return it; nothing for a thread."""
        return self.mib * MIB if self.can_be_killed and not self.ended.is_set() else 0

    def kill(self) -> None:
        """End it."""
        self.ended.set()


@dataclass
class FakeMember:
    """The place of a worker whose model takes 100 MiB."""

    index: int
    worker: FakeWorker
    guard: MemoryGuard = field(default_factory=lambda: MemoryGuard(0, 0))
    killed: bool = False
    no_memory: str = ""

    def __post_init__(self) -> None:
        """Say what the model takes."""
        self.guard.loaded(100 * MIB)


def watched(*sizes: int, others: int, inline: bool = False) -> tuple[list[int], list[FakeMember]]:
    """Watch workers of so many MiB until the group was looked at a few times; return who was ended."""
    workers = [FakeWorker(size, can_be_killed=not inline) for size in sizes]
    members = [FakeMember(index, worker) for index, worker in enumerate(workers)]
    group = Group(workers, others)
    with MemoryWatch(cast("Any", group), cast("Any", members)):
        for _ in range(3):
            assert group.looked.acquire(timeout=10)
    return [index for index, worker in enumerate(workers) if worker.ended.is_set()], members


def test_the_one_that_has_grown_most_is_ended() -> None:
    """And it says how much it had, and how much there is."""
    ended, members = watched(150, 700, 100, others=60)
    assert ended == [1]
    assert members[1].no_memory == (
        "took 700 MiB of memory, where all processes together may take 1,000 MiB, and was ended"
    )
    assert not members[0].no_memory


@pytest.mark.parametrize(
    ("sizes", "others"),
    [
        pytest.param([100, 150, 100], 640, id="others hold it"),
        pytest.param([400], 560, id="others hold more"),
        pytest.param([220, 220, 220, 220], 90, id="none has much"),
    ],
)
def test_who_does_not_fill_it_is_left_alone(sizes: list[int], others: int) -> None:
    """Where others fill the group, or no worker has much beyond its model: the kernel may choose."""
    assert watched(*sizes, others=others)[0] == []


def test_what_the_kernel_says_may_be_old() -> None:
    """What a worker has taken since then counts as well."""
    worker = FakeWorker(150)
    group = Group([worker], others=100, stale=250)
    with MemoryWatch(cast("Any", group), cast("Any", [FakeMember(0, worker)])):
        for size, ends in ((150, False), (790, False), (830, True)):
            worker.mib = size
            for _ in range(2):
                assert group.looked.acquire(timeout=10)
            assert worker.ended.wait(10 if ends else 0) == ends


def test_what_cannot_be_ended_is_not_marked() -> None:
    """A worker in a thread ends with us, and goes on getting units."""
    ended, members = watched(900, others=990, inline=True)
    assert ended == []
    assert not members[0].no_memory


def test_each_death_is_told_once() -> None:
    """Two that the kernel ends at once are two."""
    group = Group(limit=700 * MIB)
    watch = MemoryWatch(cast("Any", group), [])
    assert watch.killed() == ""
    group.kills = 2
    told = "was ended by the kernel for want of memory, where all processes together may take 700 MiB"
    assert [watch.killed() for _ in range(3)] == [told, told, ""]
    group.limit, group.kills = 0, 3
    assert watch.killed() == "was ended by the kernel for want of memory"
