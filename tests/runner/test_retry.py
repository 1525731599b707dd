"""`retry`: failed rows are done again, and what goes well takes its place; nothing else moves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conftest import Run, parts_of, write_shards
from tests.runner.test_error_destinations import SHAPES, SHARDS, job_of, rows_of
from tests.runner.test_generations import manifest_of

BAD = [0, 45, 46, 99, *range(200, 250), 306]

CODE = """
import pathlib

class Model:
    inputs = {"x": "float32[?]"}
    outputs = {"y": "float32[?]"}

    def __call__(self, tensors):
        bad = pathlib.Path(__file__).with_name("bad.txt").read_text().split()
        if {str(int(2 * value)) for value in tensors["x"]} & set(bad):
            raise TimeoutError("not today")
        return {"y": tensors["x"] * 2}
"""


def ids_by_part(out: Path) -> dict[str, list[int]]:
    """Return the ids that each part of the manifest holds."""
    parts = manifest_of(out)["parts"]
    assert isinstance(parts, list)
    return {part["name"]: pq.read_table(out / part["name"])["id"].to_pylist() for part in parts}


def swept(batchinfer: Run, job: str) -> None:
    """Remove what was replaced, and check what is left."""
    assert batchinfer("gc", job, "--delete").returncode == 0
    verified = batchinfer("verify", "--deep", job)
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(
    ("shape", "to"),
    [("parquet", "separate"), ("folders", "column"), ("jsonl", "column")],
)
def test_once_the_cause_is_mended(tmp_path: Path, batchinfer: Run, shape: str, to: str) -> None:
    """The output is then that of a run in which nothing failed, also where only some of the rows are mended at
    first; units in which no row failed keep their parts."""
    write_shards(tmp_path / "in", SHARDS)
    more: dict[str, Any] = {
        "model": {
            "signature": {"inputs": {"x": "float32[?]"}, "outputs": {"y": "float32[?]", "v": "float32[?, 3]"}}
        },
        "output": {"meta": ["_row"], **SHAPES[shape]},
        "errors": {"to": to},
        "input": {"where": "id != 47"},
        "compute": {"workers_per_device": 3 if to == "column" else 1},
    }
    job = str(job_of(tmp_path / "a", BAD, **more))
    assert batchinfer("run", job).returncode == 0
    out = tmp_path / "a" / "out"
    before, good = parts_of(out), rows_of(out)
    for left in ([46, 249], []):
        job_of(tmp_path / "a", left, **more)
        done = batchinfer("retry", job, "--mended", "--log-format", "json")
        assert done.returncode == 0, done.stderr
        (end,) = [json.loads(line) for line in done.stderr.splitlines() if "run_finished" in line]
        assert end["rows_total"] == 307 == end["rows_ok"] + end["rows_error"] + end["rows_filtered"]
        assert end["rows_error"] == len(left)
        receipt = json.loads((out / "_batchinfer" / "runs" / f"{end['run']}.json").read_text())
        assert receipt["output_rows"]["error"] == len(left)
        if left:
            samples = json.loads(batchinfer("errors", str(out), "--json").stdout)["samples"]
            assert sorted((row["row"], row["attempts"]) for row in samples) == [(46, 2), (249, 2)]
    swept(batchinfer, job)
    found = rows_of(out)
    assert sorted(found) == [row for row in range(307) if row != 47]
    for number, row in found.items():
        assert (row["y"], row["v"], row["_row"]) == (float(number), [float(number)] * 3, number % 250)
        assert row.get("_error") is None
        assert row == good.get(number, row) or number in BAD
    untouched = [name for name in before if "00001-of-00004" in name]
    assert untouched
    assert all(parts_of(out)[name] == before[name] for name in untouched)


def test_by_the_job_that_the_output_remembers(tmp_path: Path, batchinfer: Run) -> None:
    """`retry OUTPUT` needs no job file, where the job is the same; `--where` chooses, attempts are counted, and
    the budget is judged at the end."""
    write_shards(tmp_path / "in", SHARDS)
    job = job_of(tmp_path / "a", [], errors={"to": "column", "max": 3})
    document = json.loads(job.read_text())
    document["model"] = {"backend": "python", "entry": "code_of_mine:Model"}
    job.write_text(json.dumps(document))
    (tmp_path / "a" / "code_of_mine.py").write_text(CODE)
    bad = tmp_path / "a" / "bad.txt"
    bad.write_text("")
    out = str(tmp_path / "a" / "out")
    assert batchinfer("retry", str(job)).returncode == 66
    assert batchinfer("run", str(job), "--set", "limits.max_rows=100").returncode == 75
    unfinished = batchinfer("retry", out)
    assert unfinished.returncode == 65
    assert "run the job first" in unfinished.stderr
    bad.write_text("201 245 306")
    assert batchinfer("run", str(job)).returncode == 0
    bad.write_text("245 306")
    first = json.loads(batchinfer("errors", out, "--json", "--where", "source=shard-0.parquet").stdout)
    before = {row["row"]: row["attempts"] for row in first["samples"]}
    again = batchinfer("retry", str(job), "--set", "errors.max=1", "--where", "source=shard-0.parquet")
    assert again.returncode == 3, again.stderr
    assert "2 of 307 rows failed, more than errors.max (1) allows" in again.stderr
    job.rename(tmp_path / "elsewhere.json")
    read_as_a_job = batchinfer("verify", str(tmp_path / "elsewhere.json"))
    assert "there is no module 'code_of_mine' in the job's folder" in read_as_a_job.stderr
    none = batchinfer("retry", out, "--where", "code=endpoint")
    assert none.returncode == 0
    assert "no failed row is asked for" in none.stdout
    assert batchinfer("retry", out, "--where", "colour=red").returncode == 2
    failed = json.loads(batchinfer("errors", out, "--json").stdout)["samples"]
    assert [(row["source"], row["row"]) for row in failed] == [
        ("shard-0.parquet", 245),
        ("shard-1.parquet", 56),
    ]
    assert failed[0]["attempts"] > before[245]
    bad.write_text("")
    assert batchinfer("retry", out).returncode == 0
    both = batchinfer("verify", out)
    assert both.returncode == 65
    assert f"every part that counts is there: `batchinfer gc {out} --delete`" in both.stderr
    assert batchinfer("gc", out, "--delete").returncode == 0
    assert batchinfer("verify", "--deep", out).returncode == 0
    assert sorted(row for ids in ids_by_part(Path(out)).values() for row in ids) == list(range(307))


def test_another_job_is_refused(tmp_path: Path, batchinfer: Run) -> None:
    """A job that changed is told with its differences: `--mended` allows those of the model and the steps, and
    none of what a row is or what is kept of it."""
    write_shards(tmp_path / "in", SHARDS)
    assert batchinfer("run", str(job_of(tmp_path / "a", [45]))).returncode == 0
    job = str(job_of(tmp_path / "a", []))
    refused = batchinfer("retry", job)
    assert refused.returncode == 67
    assert "changed: model.faults.22.5 error -> nothing" in refused.stderr
    assert "--mended" in refused.stderr
    for more in ({"output": {"carry": ["id", "text"]}}, {"errors": {"to": "column"}}):
        refused = batchinfer("retry", str(job_of(tmp_path / "a", [], **more)), "--mended")
        assert refused.returncode == 67
        assert "cannot differ in" in refused.stderr


POINTS = ("gen.after", "encode.done", "final.success.before")


@pytest.mark.parametrize("to", ["column", "separate"])
def test_killed_and_repeated(
    tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """A retry that is killed at any point, and repeated, or gone on with by `run`, ends as one that was not."""
    write_shards(tmp_path / "in", SHARDS)
    job = str(job_of(tmp_path / "a", BAD, errors={"to": to}))
    assert batchinfer("run", job).returncode == 0
    out, kept = tmp_path / "a" / "out", tmp_path / "kept"
    shutil.copytree(out, kept)
    job_of(tmp_path / "a", [46], errors={"to": to})
    monkeypatch.setenv("BATCHINFER_TESTING", "1")
    golden: dict[str, bytes] = {}
    for number, point in enumerate(("", *POINTS)):
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        died = tmp_path / f"died-{number}"
        monkeypatch.setenv("BATCHINFER_CRASH", f"{point}:1:{died}" if point else "")
        done = batchinfer("retry", job, "--mended")
        assert done.returncode in {0, -9}, done.stderr
        if done.returncode:
            monkeypatch.setenv("BATCHINFER_CRASH", "")
            resume = ["run", job] if point.startswith("final") else ["retry", job, "--mended"]
            again = batchinfer(*resume)
            assert again.returncode == 0, again.stderr
        assert died.exists() == bool(point)
        found = parts_of(out) | {"_SUCCESS": (out / "_SUCCESS").read_bytes()}
        golden = golden or found
        assert found == golden, point
        assert manifest_of(out)["generation"] == 2
        assert manifest_of(out)["rows_error"] == 1
    swept(batchinfer, job)
