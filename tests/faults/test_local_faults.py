"""Faults of the machine itself: disks that are full or broken, limits, files that change, closed pipes."""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchinfer.runner.inspection import verify_output
from batchinfer.storage.posix import PosixStore
from tests.conftest import Run, doubling_job, environment, numbers, parts_of, write_shards
from tests.runner.commands import read, start, wait_for_parts

# Python reads this module when it starts, in the parent and in every worker.
SABOTAGE = """
import errno, os
what, after, code = os.environ["SABOTAGE"].split(":")
real, left = getattr(os, what), int(after)

def broken(*arguments, **named):
    global left
    left -= 1
    if left < 0:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
    return real(*arguments, **named)

setattr(os, what, broken)
"""


def run(*arguments: str, timeout: float = 120, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command with an environment or limits of its own."""
    return subprocess.run(
        [sys.executable, "-m", "batchinfer", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        **{"env": environment(), **more},
    )


def golden(tmp_path: Path, sizes: list[int]) -> dict[str, bytes]:
    """Return the parts of an undisturbed run over new shards."""
    write_shards(tmp_path / "in", sizes)
    assert run("run", str(doubling_job(tmp_path, output={"path": "calm/"}))).returncode == 0
    return parts_of(tmp_path / "calm")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 200 KB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    """A disk that fills up ends the run with 74 and its path; what was committed stays, nothing partial
    is visible, and the same command completes once there is room."""
    calm = golden(tmp_path, [2000])
    job = str(doubling_job(tmp_path, output={"path": str(small_disk / "out")}))
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 130_000)
    full = run("run", job)
    assert full.returncode == 74, full.stderr
    assert str(small_disk) in full.stderr
    assert "free some space" in full.stderr
    parts = parts_of(small_disk / "out")
    assert parts.items() < calm.items()
    assert not list(small_disk.rglob(".tmp-*"))
    filler.unlink()
    assert run("run", job).returncode == 0
    assert parts_of(small_disk / "out") == calm


@pytest.mark.parametrize("sabotage", ["fsync:24:EIO", "fsync:24:ENOSPC", "link:12:ENOSPC", "link:12:EIO"])
def test_a_disk_that_fails_a_step(tmp_path: Path, sabotage: str) -> None:
    """An error of fsync or link is a failed write: exit 74, nothing partial, resumable. fsync is not
    tried again on the same file, since the kernel may have dropped the data by then."""
    calm = golden(tmp_path, [1500])
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    job = str(doubling_job(tmp_path))
    broken = run("run", job, env={**environment(), "PYTHONPATH": str(tmp_path), "SABOTAGE": sabotage})
    assert broken.returncode == 74, broken.stderr
    parts = parts_of(tmp_path / "out")
    assert parts.items() <= calm.items()
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert run("run", job).returncode == 0
    assert parts_of(tmp_path / "out") == calm


def test_a_file_size_limit(tmp_path: Path) -> None:
    """A limit on the size of files is a disk that refuses: exit 74."""
    write_shards(tmp_path / "in", [3000])
    job = str(doubling_job(tmp_path, checkpoint={"unit_rows": 3000}))
    limited = run("run", job, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)))
    assert limited.returncode == 74, limited.stderr
    assert parts_of(tmp_path / "out") == {}


@pytest.mark.parametrize("limit", [12, 16, 24, 40])
def test_too_few_open_files(tmp_path: Path, limit: int) -> None:
    """Where no more files may be opened, the run ends with a documented code, says so, and does not hang."""
    write_shards(tmp_path / "in", [50] * 30)
    job = str(doubling_job(tmp_path))
    limited = run(
        "run", job, timeout=60, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    )
    assert limited.returncode in {0, 70}, limited.stderr
    if limited.returncode:
        assert "open" in limited.stderr
        assert "Traceback" not in limited.stderr
    assert run("run", job).returncode == 0


def test_little_shared_memory(tmp_path: Path) -> None:
    """Nothing is kept in /dev/shm: a run works where it is tiny."""
    write_shards(tmp_path / "in", [400])
    job = doubling_job(tmp_path)
    command = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {sys.executable} -m batchinfer run {job}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False, env=environment()
    )
    if "unshare" in done.stderr:
        pytest.skip("no mount namespace can be made here")
    assert done.returncode == 0, done.stderr


class Disk:
    """Records what a store asks of a disk, and says what may be there after the power fails."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[str, str]] = []
        for name in ("fsync", "link", "replace"):
            patch.setattr(os, name, self._recording(name, getattr(os, name)))
        patch.setattr(Path, "unlink", self._recording("unlink", Path.unlink))

    def _recording(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *rest: Any, **named: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
            kind = "folder" if Path(path).is_dir() else "file"
            self.steps.append((name, kind if name == "fsync" else str(rest[0]) if rest else path))
            return real(target, *rest, **named)

        return call

    def states(self, final: str) -> set[str]:
        """Return in which states the final name may be found: absent, whole or torn.

        Data that was not synced may be torn; names made since the last sync of their folder may be
        there or not, in any subset.
        """
        found = set()
        for end in range(len(self.steps) + 1):
            done = self.steps[:end]
            names = [
                at for at, (step, name) in enumerate(done) if step in {"link", "replace"} and name == final
            ]
            last_sync = max((at for at, step in enumerate(done) if step == ("fsync", "folder")), default=-1)
            pending = [at for at in names if at > last_sync]
            for size in range(len(pending) + 1):
                for kept in itertools.combinations(pending, size):
                    there = [at for at in names if at <= last_sync] + list(kept)
                    if not there:
                        found.add("absent")
                        continue
                    synced = any(step == ("fsync", "file") for step in done[: max(there)])
                    found.add("whole" if synced else "torn")
        return found


@pytest.mark.parametrize("method", ["create", "put"])
def test_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Whatever a disk has made durable when the power fails, a final name is absent or whole."""
    final = str(tmp_path / "part")
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        getattr(PosixStore(), method)(final, b"data" * 1000)
    assert disk.states(final) == {"absent", "whole"}
    assert disk.steps[-1] == ("fsync", "folder") or ("fsync", "folder") in disk.steps


def test_power_loss_without_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that did not sync before the link would be found out by the test above."""
    final = str(tmp_path / "part")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        disk = Disk(patch)
        disk.steps.clear()
        patch.setattr(os, "fsync", lambda _: None)
        PosixStore().create(final, b"data")
    assert "torn" in disk.states(final)


def damaged(name: str) -> Callable[[Path], None]:
    """Return what cuts a control file short."""

    def cut(out: Path) -> None:
        (path,) = out.rglob(name)
        path.write_bytes(path.read_bytes()[:-20])

    return cut


@pytest.mark.parametrize("name", ["plan.json", "0001.json", "manifest.json", "_SUCCESS"])
def test_control_files_cut_short(tmp_path: Path, batchinfer: Run, name: str) -> None:
    """A damaged plan, register, manifest or seal is an error that names the file: never an empty plan."""
    write_shards(tmp_path / "in", [250])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    before = parts_of(tmp_path / "out")
    damaged(name)(tmp_path / "out")
    for verb in ("verify", "run"):
        told = batchinfer(verb, job)
        assert told.returncode == 65, (verb, told.stderr)
        assert name in told.stderr
    assert parts_of(tmp_path / "out") == before


@pytest.mark.parametrize("content", [b"\x80\x04\x95", b"[]", b'{"format": 1}', b"\xff\xfe"])
def test_control_files_of_another_kind(tmp_path: Path, batchinfer: Run, content: bytes) -> None:
    """A pickle, or JSON of another shape, in place of the plan is an error, and nothing is executed."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    (plan,) = (tmp_path / "out").rglob("plan.json")
    plan.write_bytes(content)
    assert batchinfer("run", job).returncode == 65


@pytest.mark.parametrize("name", ["plan.json", "0001.json", "_SUCCESS"])
def test_a_newer_release_wrote_it(tmp_path: Path, batchinfer: Run, name: str) -> None:
    """A file of a format that this release cannot read is refused with 67, not guessed at."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    (path,) = (tmp_path / "out").rglob(name)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    refused = batchinfer("verify" if name == "_SUCCESS" else "run", job)
    assert refused.returncode == 67, refused.stderr
    assert "has format 99" in refused.stderr


def test_a_planted_file(tmp_path: Path, batchinfer: Run) -> None:
    """A file that somebody put among the parts is named by verify, and left alone by gc."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    alien = tmp_path / "out" / "part-00000-of-00001-deadbeef.parquet"
    alien.write_bytes(b"PAR1")
    told = batchinfer("verify", job)
    assert told.returncode == 65
    assert alien.name in told.stderr
    batchinfer("gc", job, "--delete")
    assert alien.exists()


@pytest.mark.parametrize("how", ["replaced", "deleted"])
def test_input_that_changes_while_it_is_read(tmp_path: Path, how: str) -> None:
    """An input file that is replaced or deleted after the plan ends the run with 65 and its name."""
    write_shards(tmp_path / "in", [300, 300, 300])
    job = doubling_job(tmp_path, model={"seconds_per_batch": 0.1}, compute={"host_memory": 10_000})
    process = start("run", str(job))
    wait_for_parts(tmp_path / "out", 1)
    victim = tmp_path / "in" / "shard-2.parquet"
    if how == "deleted":
        victim.unlink()
    else:
        pq.write_table(numbers(0, 300), tmp_path / "new.parquet")
        (tmp_path / "new.parquet").replace(victim)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 65, stderr
    assert "shard-2.parquet" in stderr


def test_a_model_that_changes_before_it_is_loaded(tmp_path: Path) -> None:
    """A model file that is swapped between its hash and its loading is refused with 67."""
    (tmp_path / "model.onnx").write_bytes(b"first")
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "class Slow:\n"
        "    inputs = {'x': 'float32[?]'}\n"
        "    outputs = {'y': 'float32[?]'}\n"
        "    def __init__(self, path):\n"
        "        pathlib.Path(path).with_name('loading').touch()\n        time.sleep(3)\n"
        "    def __call__(self, batch):\n        return {'y': batch['x']}\n"
    )
    write_shards(tmp_path / "in", [100])
    model = {"backend": "python", "entry": "slow:Slow", "path": "model.onnx"}
    document = json.loads(doubling_job(tmp_path).read_text()) | {"model": model}
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    process = start("run", str(tmp_path / "job.yaml"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "loading").exists():
        assert time.monotonic() < deadline, "nothing was loaded"
        time.sleep(0.01)
    (tmp_path / "model.onnx").write_bytes(b"other")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 67, stderr
    assert "the model changed while the run was starting" in stderr


def test_many_small_files(tmp_path: Path, batchinfer: Run) -> None:
    """A thousand files of three rows make a thousand units, and a complete output."""
    write_shards(tmp_path / "in", [3] * 1000)
    job = str(doubling_job(tmp_path))
    done = batchinfer("run", job)
    assert done.returncode == 0, done.stderr
    assert "3,000 in = 3,000 ok" in done.stderr
    assert sorted(read(tmp_path / "out")["id"].to_pylist()) == list(range(3000))


def test_an_error_in_a_later_step_publishes_nothing(tmp_path: Path, batchinfer: Run) -> None:
    """An exception on the way to a part leaves no trace of that part, and the others as they are."""
    (tmp_path / "steps.py").write_text(
        "import numpy as np\n"
        "def check(results, inputs):\n"
        "    if float(np.max(results['y'])) > 350:\n        raise RuntimeError('no')\n"
        "    return results\n"
    )
    write_shards(tmp_path / "in", [500])
    posts = [{"python": {"function": "steps:check", "output": {"y": "float32"}}}]
    job = str(doubling_job(tmp_path, postprocess=posts))
    failed = batchinfer("run", job)
    assert failed.returncode not in {0, 1}, failed.stderr
    assert "Traceback" not in failed.stderr
    assert all("part-00003" not in name and "part-00004" not in name for name in parts_of(tmp_path / "out"))
    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_a_thread_that_hangs_holds_nothing_up(tmp_path: Path) -> None:
    """A client's thread that never ends does not keep the process from ending."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
    )
    write_shards(tmp_path / "in", [100])
    done = run(
        "run",
        str(doubling_job(tmp_path)),
        timeout=30,
        env={**environment(), "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("where", ["stderr=/dev/full", "stdout=/dev/full", "stderr closed", "| head"])
def test_nobody_listens(tmp_path: Path, where: str) -> None:
    """A full log disk or a closed pipe costs the messages, not the run."""
    write_shards(tmp_path / "in", [400])
    job = doubling_job(tmp_path, model={"seconds_per_batch": 0.02}, observe={"interval": 0.1})
    tail = {
        "stderr=/dev/full": "2>/dev/full",
        "stdout=/dev/full": ">/dev/full",
        "stderr closed": "2>&-",
        "| head": "2>&1 | head -1",
    }[where]
    command = f"{sys.executable} -m batchinfer run {job} {tail}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, check=False, env=environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len(parts_of(tmp_path / "out")) == 4
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_worker_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    """A worker that comes to life after its parent's death sees that it is an orphan, and ends."""
    reading, writing = os.pipe()
    orphan = subprocess.run(
        [sys.executable, "-m", "batchinfer.runner.worker", str(reading), str(writing), "1"],
        pass_fds=(reading, writing),
        capture_output=True,
        check=False,
        timeout=30,
        env=environment(),
    )
    os.close(reading)
    os.close(writing)
    assert orphan.returncode == 1


@pytest.mark.parametrize(
    "point",
    [
        "plan.before_put",
        "plan.after_put",
        "gen.before",
        "gen.after",
        "final.list",
        "final.manifest.before",
        "final.manifest.after",
        "final.success.before",
        "final.success.after",
    ],
)
def test_death_at_the_beginning_and_at_the_end(tmp_path: Path, batchinfer: Run, point: str) -> None:
    """Killed at any step of storing the plan or of sealing the output, the same command completes it."""
    calm = golden(tmp_path, [250])
    job = str(doubling_job(tmp_path))
    killed = run(
        "run", job, env={**environment(), "BATCHINFER_CRASH": f"{point}:1", "BATCHINFER_TESTING": "1"}
    )
    assert killed.returncode == -9, killed.stderr
    assert batchinfer("run", job).returncode == 0
    assert parts_of(tmp_path / "out") == calm
    assert batchinfer("verify", "--deep", job).returncode == 0


SLOW_PLAN = """
import time

from batchinfer.runner import output

known = output.store_plan

def slow(*arguments, **keywords):
    time.sleep(3)
    return known(*arguments, **keywords)

output.store_plan = slow
"""


def test_nothing_is_written_before_the_plan(tmp_path: Path, batchinfer: Run) -> None:
    """A store that takes its time for the plan: no part is there before it, and a run that dies there is done
    by the same command, in a folder that has nothing of anybody."""
    write_shards(tmp_path / "in", [250])
    job = str(doubling_job(tmp_path))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW_PLAN)
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", "run", job],
        stderr=subprocess.PIPE,
        env={**environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])},
        text=True,
    )
    assert process.stderr is not None
    while "worker_ready" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1.5)  # its first unit is computed by now
    assert parts_of(tmp_path / "out") == {}
    process.kill()
    process.communicate(timeout=20)
    assert batchinfer("run", job).returncode == 0
    assert batchinfer("verify", job).returncode == 0


@pytest.mark.parametrize("point", ["gc.before_delete:2", "gc.after_first_delete:1"])
def test_death_while_clearing_up(tmp_path: Path, batchinfer: Run, point: str) -> None:
    """Gc that is killed half-way finds the rest the next time, and harms nothing that counts."""
    write_shards(tmp_path / "in", [250])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    assert batchinfer("run", job, "--force").returncode == 0
    crash = {"BATCHINFER_CRASH": point, "BATCHINFER_TESTING": "1"}
    assert run("gc", job, "--delete", env={**environment(), **crash}).returncode == -9
    assert batchinfer("gc", job, "--delete").returncode == 0
    assert batchinfer("verify", "--deep", job).returncode == 0
    assert len(parts_of(tmp_path / "out")) == 3


def test_traces_of_dead_writers_are_cleared_up(tmp_path: Path, batchinfer: Run) -> None:
    """Gc removes the temporary files of processes that are gone, and keeps those of the living."""
    write_shards(tmp_path / "in", [150])
    job = str(doubling_job(tmp_path))
    assert batchinfer("run", job).returncode == 0
    sample = f".tmp-{os.getpid()}-aa@{os.uname().nodename}"  # as a writer of this machine calls it
    alive, dead = tmp_path / "out" / sample, tmp_path / "out" / sample.replace(str(os.getpid()), "999999999")
    alive.write_bytes(b"x")
    dead.write_bytes(b"x")
    told = batchinfer("gc", job)
    assert dead.name in told.stdout
    assert alive.name not in told.stdout
    assert batchinfer("gc", job, "--delete").returncode == 0
    assert (alive.exists(), dead.exists()) == (True, False)


def test_bit_rot(tmp_path: Path) -> None:
    """Ten thousand single bits, flipped at random in the parts: the deep check misses none."""
    write_shards(tmp_path / "in", [60])
    assert run("run", str(doubling_job(tmp_path, output={"carry": ["id", "text"]}))).returncode == 0
    root = tmp_path / "out"
    ((name, good),) = parts_of(root).items()
    draw = random.Random(1)
    missed = []
    for _ in range(10_000):
        bit = draw.randrange(8 * len(good))
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        (root / name).write_bytes(bad)
        if not verify_output(str(root), {}, level="deep").problems:
            missed.append(bit)
    assert missed == []
    (root / name).write_bytes(good)
    assert verify_output(str(root), {}, level="deep").problems == ()


def test_a_slow_gateway_holds_nothing_up(tmp_path: Path, batchinfer: Run) -> None:
    """A Pushgateway that accepts and never answers does not keep a run from its end."""
    write_shards(tmp_path / "in", [100])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        kept: list[socket.socket] = []
        thread = threading.Thread(target=lambda: kept.append(listening.accept()[0]), daemon=True)
        thread.start()
        observe = {"pushgateway": {"url": url, "timeout": 1, "every": 1}}
        done = batchinfer("run", str(doubling_job(tmp_path, observe=observe)), timeout=30)
    for connection in kept:
        connection.close()
    assert done.returncode == 0, done.stderr
