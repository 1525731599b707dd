"""`errors.to`: failed rows in the part, or in a table beside it, and never lost between the two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import Run, doubling_job, parts_of, write_shards

SHARDS = [250, 57]
BAD = [0, 45, 99, *range(100, 200), 249, 306]
"""First and last of a unit, a shard and of all; and every row of the second unit."""

SHAPES: dict[str, dict[str, Any]] = {
    "parquet": {},
    "folders": {"carry": ["id", "kind"], "partition_by": ["kind"]},
    "jsonl": {"format": "jsonl"},
}


def job_of(folder: Path, bad: list[int], **more: Any) -> Path:
    """Write a job in which these rows fail, and whose failed rows go elsewhere."""
    sections: dict[str, Any] = {
        "model": {"faults": {str(row * 0.5): "error" for row in bad}},
        "errors": {"max": "100%", "to": "separate"},
        "input": {"path": str(folder.parent / "in")},
    }
    for name, section in more.items():
        sections[name] = {**sections.get(name, {}), **section}
    folder.mkdir(exist_ok=True)
    return doubling_job(folder, **sections)


def rows_of(out: Path) -> dict[int, dict[str, Any]]:
    """Return the rows that a reader sees, by id."""
    found = []
    for name in parts_of(out):
        if name.endswith(".jsonl"):
            found += [json.loads(line) for line in (out / name).read_text().splitlines()]
        else:
            found += pq.read_table(out / name, partitioning=None).to_pylist()
    assert len({row["id"] for row in found}) == len(found)
    return {row["id"]: row for row in found}


def sidecars_of(out: Path) -> list[Path]:
    """Return the tables of failed rows."""
    return sorted(out.glob("_batchinfer/*/errors/*.parquet"))


@pytest.mark.parametrize(("shape", "workers"), [("parquet", 1), ("parquet", 3)])
def test_apart(tmp_path: Path, batchinfer: Run, shape: str, workers: int) -> None:
    """The parts hold the good rows alone, the tables beside them the others with what is carried; manifest,
    metadata, `errors` and `verify` count both, and see when one of the tables is gone or another one."""
    write_shards(tmp_path / "in", SHARDS)
    compute = {"workers_per_device": workers}
    job = str(job_of(tmp_path / "a", BAD, output=SHAPES[shape], compute=compute))
    done = batchinfer("run", job, "--log-format", "json")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "a" / "out"
    good = [row for row in range(sum(SHARDS)) if row not in BAD]
    found = rows_of(out)
    assert sorted(found) == good
    assert all(row["y"] == float(number) and "_error" not in row for number, row in found.items())
    failed = pa.concat_tables(map(pq.read_table, sidecars_of(out))).to_pylist()
    assert sorted(row["id"] for row in failed) == BAD
    assert all((row["_error"]["code"], row["_error"]["row"]) == ("model", row["id"] % 250) for row in failed)
    (end,) = [line for line in done.stderr.splitlines() if "run_finished" in line]
    counted = json.loads(end)
    assert (counted["rows_ok"], counted["rows_error"]) == (len(good), len(BAD))
    asked = json.loads(batchinfer("errors", str(out), "--json").stdout)
    assert (asked["rows_total"], asked["rows_error"]) == (307, len(BAD))
    if shape == "parquet":
        for name in parts_of(out):
            said = {key.decode(): value for key, value in pq.read_metadata(out / name).metadata.items()}
            rows = {key: int(said[f"batchinfer.rows_{key}"]) for key in ("in", "ok", "error", "filtered")}
            start, stop = said["batchinfer.source_rows"].split(b"..")
            assert rows["in"] == int(stop) - int(start) == rows["ok"] + rows["error"] + rows["filtered"]
    assert batchinfer("verify", "--deep", job).returncode == 0
    victim = sidecars_of(out)[0]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-100] + b"\0" * 100)
    changed = batchinfer("verify", "--deep", job)
    assert changed.returncode == 65
    assert f"{victim.name}: its content changed" in changed.stderr
    victim.unlink()
    gone = batchinfer("verify", job)
    assert gone.returncode == 65
    assert f"{victim.name}: is missing" in gone.stderr


def test_killed_anywhere(tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed around the write of its failed rows, and resumed, leaves the very same files."""
    write_shards(tmp_path / "in", SHARDS)
    monkeypatch.setenv("BATCHINFER_TESTING", "1")
    found = []
    for number, point in enumerate(("", "errors.before", "errors.after", "final.list")):
        job = str(job_of(tmp_path / str(number), BAD))
        died = tmp_path / f"{number}.died"
        monkeypatch.setenv("BATCHINFER_CRASH", f"{point}:1:{died}" if point else "")
        first = batchinfer("run", job)
        assert died.exists() == bool(point)
        assert first.returncode == (-9 if point == "final.list" else 0), first.stderr
        if first.returncode:
            assert batchinfer("run", job).returncode == 0
        out = tmp_path / str(number) / "out"
        beside = {str(path.relative_to(out)): path.read_bytes() for path in sidecars_of(out)}
        found.append({**parts_of(out), **beside})
        assert beside
    assert all(one == found[0] for one in found)
    assert "nothing to delete" in batchinfer("gc", job).stdout


def test_what_a_loser_leaves(tmp_path: Path, batchinfer: Run) -> None:
    """A table of failed rows that no part names, from an attempt that came second, is nobody's: `verify` passes
    it by, `errors` does not count it, `gc` removes it."""
    write_shards(tmp_path / "in", SHARDS)
    job = str(job_of(tmp_path / "a", BAD))
    assert batchinfer("run", job).returncode == 0
    out = tmp_path / "a" / "out"
    first = sidecars_of(out)[0]
    stray = first.with_name(f"00000-{'0' * 16}.parquet")
    stray.write_bytes(sidecars_of(out)[1].read_bytes())
    (out / "_SUCCESS").unlink()
    next(out.glob("_batchinfer/*/manifest.json")).unlink()
    assert json.loads(batchinfer("errors", str(out), "--json").stdout)["rows_error"] == len(BAD)
    assert "nothing to delete" in batchinfer("gc", job).stdout, "its unit might still be about to name it"
    assert batchinfer("run", job).returncode == 0
    assert batchinfer("verify", "--deep", job).returncode == 0
    assert "an attempt that came second" in batchinfer("gc", job, "--delete").stdout
    assert not stray.exists()
    assert first.exists()


def test_the_input_is_kept_where_it_is_asked_for(tmp_path: Path, batchinfer: Run) -> None:
    """`errors.keep_input` records what the job read of a failed row, as JSON, cut where it is long; in the part
    or beside it."""
    rows = {
        "id": [0, 1, 2],
        "x": pa.array([0.0, 0.5, 1.0], pa.float32()),
        "raw": [b"\xff\x00", b"", b"\xff" * 90_000],
        "text": ["one", "two", "three"],
    }
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "in" / "a.parquet")
    for to in ("column", "separate"):
        carry = {"carry": ["id", "raw", "text"]}
        job = job_of(tmp_path / to, [0, 2], errors={"to": to, "keep_input": True}, output=carry)
        assert batchinfer("run", str(job)).returncode == 0
        out = tmp_path / to / "out"
        files = sidecars_of(out) if to == "separate" else [out / name for name in parts_of(out)]
        kept = {row["id"]: row["_input"] for file in files for row in pq.read_table(file).to_pylist()}
        assert json.loads(kept[0]) == {"id": 0, "x": 0.0, "raw": "/wA=", "text": "one"}
        assert json.loads(kept[2])["raw"] == {"left_out": "120002 bytes"}
        assert json.loads(kept[2])["text"] == "three"
        assert kept.get(1) is None
    refused = batchinfer(
        "validate", str(job_of(tmp_path / "no", [], errors={"on_error": "fail"})), "--no-model"
    )
    assert refused.returncode == 78
    assert "to: separate has nothing to do" in refused.stderr


@pytest.mark.parametrize(
    ("shape", "why"),
    [("folders", "which varies inside a file"), ("jsonl", "a part of JSON Lines cannot name")],
)
def test_where_a_unit_may_have_several_parts(tmp_path: Path, batchinfer: Run, shape: str, why: str) -> None:
    """Some of them may be an earlier attempt's, in which other rows failed: such a job is refused."""
    write_shards(tmp_path / "in", SHARDS)
    refused = batchinfer("run", str(job_of(tmp_path / "a", BAD, output=SHAPES[shape])))
    assert refused.returncode == 78
    assert "errors.to: separate does not go with this output" in refused.stderr
    assert why in refused.stderr
