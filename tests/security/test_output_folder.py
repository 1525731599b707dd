"""The output's folder is shared: what others put there is not believed, not run, and found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import batchinfer
from batchinfer.errors import BatchinferError
from batchinfer.runner.garbage import find_garbage
from batchinfer.runner.inspection import verify_output
from batchinfer.runner.lookout import Lookout
from tests.conftest import Run, doubling_job, numbers, parts_of, write_shards
from tests.security.canary import malicious_pickle

CONTROL = ["GEN/0001.json", "PLAN/plan.json", "PLAN/manifest.json", "_SUCCESS"]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file whose output is complete."""
    folder = tmp_path_factory.mktemp("complete")
    write_shards(folder / "in", [120, 80])
    job = doubling_job(folder)
    batchinfer.run_job(str(job))
    return job


@pytest.fixture
def finished(complete: Path) -> Iterator[Path]:
    """The same, and after the test everything in the output is as it was."""
    out = complete.parent / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    yield complete
    for path in out.rglob("*"):
        if path.is_file() and path not in before:
            path.unlink()
    for path, data in before.items():
        if not path.is_file() or path.read_bytes() != data:
            path.write_bytes(data)


def control_file(out: Path, name: str) -> Path:
    """Return the path of one of the files beside the parts."""
    if name == "_SUCCESS":
        return out / name
    plan = next(path.name for path in (out / "_batchinfer").iterdir() if len(path.name) == 8)
    return out / "_batchinfer" / name.replace("PLAN", plan)


@pytest.mark.parametrize("name", CONTROL)
@pytest.mark.parametrize("content", ["pickle", "torch", "array", "nothing", "keys", "depth"])
def test_control_files_are_json_or_an_error(finished: Path, trap: Path, name: str, content: str) -> None:
    """A pickle, or anything else that is no JSON of ours, under the name of a control file is data that is
    damaged: no verb runs it, and every verb that reads it ends with 65."""
    data = {
        "pickle": malicious_pickle(trap),
        "torch": b"PK\x03\x04" + malicious_pickle(trap),
        "array": b"[1, 2]",
        "nothing": b"",
        "keys": b'{"format": 1}',
        "depth": b"[" * 100_000,
    }[content]
    out = finished.parent / "out"
    control_file(out, name).write_bytes(data)
    codes = []
    for look in (
        lambda: batchinfer.run_job(str(finished)),
        lambda: verify_output(str(out), {}),
        lambda: Lookout(str(out), {}).look(),
        lambda: find_garbage(str(out), {}),
    ):
        try:
            look()
        except BatchinferError as error:
            codes.append(int(error.exit_code))
    assert codes
    assert set(codes) == {65}


@pytest.mark.parametrize(
    "name", ["hb/any-host-1-ab.json", "claims/0.1.json", "suspect/00000/1.json", "spill/00000/0.arrow"]
)
def test_advisory_files_are_not_believed(finished: Path, trap: Path, name: str) -> None:
    """Heartbeats, claims and batches that were put aside are hints: a pickle there is passed over, and the
    run ends as it would have."""
    out = finished.parent / "out"
    before = parts_of(out)
    gone = min(before)
    (out / gone).unlink()
    (out / "_SUCCESS").unlink()
    planted = control_file(out, f"PLAN/{name}")
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_bytes(malicious_pickle(trap))
    batchinfer.run_job(str(finished), compute__claims="lease")
    assert parts_of(out) == before


def test_the_command_says_that_a_control_file_is_damaged(finished: Path, batchinfer: Run, trap: Path) -> None:
    """The exit code is 65, and the file is named."""
    register = control_file(finished.parent / "out", "GEN/0001.json")
    register.write_bytes(malicious_pickle(trap))
    for verb in ("run", "status"):
        done = batchinfer(verb, str(finished))
        assert done.returncode == 65, done.stderr
        assert "0001.json" in done.stderr


def planted_part(out: Path) -> Path:
    """Return the name of a part that no unit has, in every other way like ours."""
    name = min(parts_of(out))
    return out / name.replace("part-00000", "part-00009")


def test_a_planted_part_is_found_and_counted_by_nobody(finished: Path, batchinfer: Run) -> None:
    """A file that looks like a part of ours is none: `verify` names it, and neither the report nor the
    manifest counts its rows."""
    out = finished.parent / "out"
    pq.write_table(numbers(0, 1000), planted_part(out))
    done = batchinfer("verify", str(finished))
    assert done.returncode == 65
    assert "part-00009" in done.stderr
    assert "is not in the manifest" in done.stderr
    manifest = json.loads(control_file(out, "PLAN/manifest.json").read_text())
    assert manifest["rows"] == 200
    assert not [part for part in manifest["parts"] if "part-00009" in part["name"]]


@pytest.mark.parametrize("name", ["part-extra.parquet", "data.csv", "kind=even/x.parquet"])
def test_a_stranger_among_the_parts_is_found(finished: Path, name: str) -> None:
    """Any other visible file is named as none of ours."""
    out = finished.parent / "out"
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"x")
    (problem,) = verify_output(str(out), {}).problems
    assert problem == f"{name}: is not in the manifest, and no part of ours"


def test_a_changed_byte_is_found(finished: Path, batchinfer: Run) -> None:
    """Whoever changes a part, and leaves its name and size, is found by its checksum."""
    part = finished.parent / "out" / min(parts_of(finished.parent / "out"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    done = batchinfer("verify", "--deep", str(finished))
    assert done.returncode == 65
    assert "its content changed (sha256 differs)" in done.stderr


@pytest.mark.parametrize("key", ["rows", "parts", "plans"])
def test_a_changed_manifest_is_found(finished: Path, key: str) -> None:
    """The manifest is under the checksum of `_SUCCESS`: neither its figures nor its list can be bent."""
    out = finished.parent / "out"
    path = control_file(out, "PLAN/manifest.json")
    manifest = json.loads(path.read_text())
    manifest[key] = {"rows": 201, "parts": manifest["parts"][:1], "plans": ["00000000"]}[key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(BatchinferError, match="the manifest was changed after the run") as caught:
        verify_output(str(out), {})
    assert caught.value.exit_code == 65


def test_a_folder_with_files_of_others_is_not_written_into(tmp_path: Path) -> None:
    """An output folder that holds what no plan accounts for is refused before anything is written."""
    write_shards(tmp_path / "in", [20])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs.csv").write_text("mine")
    with pytest.raises(BatchinferError, match="holds files that this job did not write") as caught:
        batchinfer.run_job(str(doubling_job(tmp_path)))
    assert caught.value.exit_code == 67
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs.csv"]
