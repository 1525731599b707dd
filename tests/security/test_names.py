"""Names come from data: of folders, files and columns. They lead nowhere, and they print as what they are."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchinfer
from batchinfer.config.sections import ObserveOptions
from batchinfer.engine.commit import NULL_PARTITION, OutputLayout, folder_of
from batchinfer.errors import DataError, FingerprintError, JobFileError
from batchinfer.events import RunFinished, RunStarted, Warned, WorkerSaid
from batchinfer.storage import open_store
from batchinfer.telemetry import make_observers
from tests.conftest import Run, doubling_job, environment, parts_of, write_shards

HOSTILE = [
    *("../../x", "/etc/passwd", "..", ".", "", "a\\b", "a\0b", "a/b", "//", "%2e%2e%2f", "..%2f"),
    *("_hidden", ".hidden", "a=b", " a ", "a\nb", "\x1b[31m", "\u202egnp.exe", "é", "\u2028", "\ufeff"),
    *("CON", "a:b", "*", "?", "~", "$HOME", "`id`", "$(id)", "|", "x" * 80, "é" * 30, "\U0001f600"),
]
ANY_TEXT = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=30),
    st.text(alphabet="./\\%_ \0\n~", max_size=10),
)


def checkfolder_of(value: str) -> None:
    """Check that a value of a row is one folder of the output, or refused."""
    layout = OutputLayout(
        root="/out", plan8="0" * 8, num_units=1, suffix=".parquet", partition_by=("k",), records=True
    )
    try:
        folder = folder_of({"k": value})
    except DataError:
        assert value in {"", ".", "..", NULL_PARTITION} or len(value.encode()) > 80
        return
    assert re.fullmatch(r"k=[A-Za-z0-9._~% -]+", folder)
    assert unquote(folder.removeprefix("k=")) == value
    place = layout.uri(layout.part_name(0, folder))
    assert os.path.normpath(place) == place
    assert Path(place).parent.parent == Path("/out")
    assert len(folder) <= 255


def test_no_value_of_a_row_leads_out_of_itsfolder_of() -> None:
    """Ten thousand texts, half of them of the letters that paths are made of: each is one folder, by a
    name of harmless letters that gives it back, or is refused."""
    chance = random.Random(15)
    letters = "./\\%_ \0\n~=:*?a"
    for value in HOSTILE:
        checkfolder_of(value)
    for _ in range(5000):
        checkfolder_of("".join(chance.choices(letters, k=chance.randrange(12))))
        points = (chance.choice([chance.randrange(0x300), chance.randrange(0xD800)]) for _ in range(8))
        checkfolder_of("".join(map(chr, points)))


@settings(max_examples=300, database=None)
@given(ANY_TEXT)
def test_no_value_that_somebody_thinks_up_leads_out_of_itsfolder_of(value: str) -> None:
    """The same, for the texts that a search for a counterexample comes to."""
    checkfolder_of(value)


@settings(max_examples=500, database=None)
@given(st.dictionaries(ANY_TEXT, ANY_TEXT, min_size=1, max_size=3))
def test_no_name_of_a_column_leads_out_of_itsfolder_of(values: dict[str, str]) -> None:
    """A column's name is percent-encoded as its values are: as many folders as columns, none of them up."""
    try:
        folder = folder_of(values)
    except DataError:
        return
    levels = folder.split("/")
    assert len(levels) == len(values)
    assert not {"", ".", ".."} & set(levels)
    assert "\0" not in folder
    assert "\\" not in folder


def partitioned(folder: Path, column: pa.Array, *, name: str = "k", out: str | None = None) -> dict[str, Any]:
    """Return a job whose output has a folder for each value of a column."""
    (folder / "in").mkdir()
    table = pa.table(
        {
            "id": pa.array(range(len(column)), pa.int64()),
            "x": pa.array([1.0] * len(column), pa.float32()),
            name: column,
        }
    )
    pq.write_table(table, folder / "in" / "a.parquet")
    return {
        "job": "hostile",
        "input": {"path": str(folder / "in")},
        "model": {"backend": "simulated", "seconds_per_batch": 0},
        "output": {
            "path": out or f"memory://{folder.name}/out",
            "carry": ["id", name],
            "partition_by": [name],
        },
    }


def parts_in_memory(folder: Path) -> dict[str, bytes]:
    """Return the parts of such a job's output, by their names below its root."""
    root = f"memory://{folder.name}/out"
    store = open_store(root, {})
    return {entry.uri.removeprefix(f"{root}/"): store.read(entry.uri) for entry in store.glob(root)}


def test_a_run_over_hostile_values_stays_in_itsfolder_of(tmp_path: Path) -> None:
    """Every row is under the output's root, in a folder that readers decode to its value; nothing else is
    made anywhere."""
    values = [value for value in HOSTILE if value not in {"", ".", ".."}]
    document = partitioned(tmp_path, pa.array(values), out=str(tmp_path / "deep" / "out"))
    assert batchinfer.run_job(document).rows_ok == len(values)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    folders = {name.split("/")[0] for name in parts_of(tmp_path / "deep" / "out")}
    assert {unquote(folder.removeprefix("k=")) for folder in folders} == set(values)


@pytest.mark.parametrize("value", ["", ".", "..", NULL_PARTITION, "x" * 300])
def test_a_value_that_names_nofolder_of_is_an_error(tmp_path: Path, value: str) -> None:
    """What cannot be a folder of its own is told, and no row of it is lost in another one."""
    with pytest.raises(DataError, match="partition column 'k'") as caught:
        batchinfer.run_job(partitioned(tmp_path, pa.array(["a", None, value])))
    assert caught.value.exit_code == 65
    assert parts_in_memory(tmp_path) == {}


def test_no_row_is_lost_betweenfolder_ofs(tmp_path: Path) -> None:
    """A value that equals nothing, not even itself, has a folder as every other has."""
    column = pa.array([1.0, float("nan"), None, 2.0, float("nan"), -0.0, 0.0])
    report = batchinfer.run_job(partitioned(tmp_path, column))
    parts = parts_in_memory(tmp_path)
    assert report.rows_ok == 7
    assert sum(pq.read_table(pa.BufferReader(data)).num_rows for data in parts.values()) == 7


@pytest.mark.parametrize("name", ["_k", ".k", "../k"])
def test_a_column_whosefolder_ofs_readers_skip_is_refused(tmp_path: Path, name: str) -> None:
    """Folders that begin with a dot or an underscore are invisible: the job is refused."""
    with pytest.raises(JobFileError, match="would make folders that every reader skips"):
        batchinfer.run_job(partitioned(tmp_path, pa.array(["a"]), name=name))


@pytest.mark.parametrize("column", [pa.array([b"../x"]), pa.array([["a"]]), pa.array([{"a": 1}])])
def test_bytes_and_lists_name_nofolder_of(tmp_path: Path, column: pa.Array) -> None:
    """A column of bytes, lists or structs is no partition column."""
    with pytest.raises(JobFileError, match="names no folder"):
        batchinfer.run_job(partitioned(tmp_path, column))


def test_a_column_may_be_called_anything_else(tmp_path: Path) -> None:
    """Dots and slashes inside of a column's name mean nothing."""
    assert batchinfer.run_job(partitioned(tmp_path, pa.array(["a", "b"]), name="a.b/[0]")).rows_ok == 2
    folders = {unquote(name.split("/")[0]) for name in parts_in_memory(tmp_path)}
    assert folders == {"a.b/[0]=a", "a.b/[0]=b"}


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    """Where a link waits under the very name that a part will have, the output is somebody else's, and the
    file behind the link stays as it is."""
    write_shards(tmp_path / "in", [20])
    job = str(doubling_job(tmp_path))
    batchinfer.run_job(job)
    (name,) = parts_of(tmp_path / "out")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(FingerprintError, match="holds files that this job did not write"):
        batchinfer.run_job(job, output__path=str(tmp_path / "other"))
    assert (tmp_path / "victim").read_text() == "mine"


NAMES = [
    "a\nerror[data]: forged",
    "b\x1b[31mred\x1b[0m",
    "c\x1b]0;title\x07",
    "d\u202egnp.exe",
    "e\r100%",
    "f\u2028g\x85h",
    "i" * 240,
    "\x9b31mj",
]


def is_harmless(text: str) -> bool:
    """Tell whether a text only prints."""
    return all(char.isprintable() or char == "\n" for char in text)


def hostile_input(folder: Path) -> Path:
    """Write shards with hostile names, a row of each of which fails; return the job over them."""
    (folder / "in").mkdir()
    table = pa.table({"id": [1, 2], "x": pa.array([1.0, None], pa.float32())})
    for name in NAMES:
        pq.write_table(table, folder / "in" / f"{name}.parquet")
    return doubling_job(folder, errors={"max": "100%"}, output={"carry": ["id"], "meta": ["_source"]})


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_hostile_names_print_as_what_they_are(tmp_path: Path, batchinfer: Run, log_format: str) -> None:
    """Log lines, the summary and its samples of failed rows show escapes; no name begins a line of its own."""
    done = batchinfer("run", str(hostile_input(tmp_path)), "--log-format", log_format)
    assert done.returncode == 0, done.stderr
    assert is_harmless(done.stderr)
    assert not re.search(r"^error\[", done.stderr, re.MULTILINE)
    if log_format == "json":
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert {line["job"] for line in lines} == {"doubling"}
    # One sample at least names its file.
    assert re.search(r"\.parquet\b", done.stderr)


@pytest.mark.parametrize("name", [NAMES[0], NAMES[2], NAMES[3]])
def test_a_damaged_file_with_a_hostile_name_is_told_harmlessly(tmp_path: Path, name: str) -> None:
    """The error names the file, with escapes, on one line."""
    write_shards(tmp_path / "in", [20])
    (tmp_path / "in" / f"{name}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError) as caught:
        batchinfer.run_job(str(doubling_job(tmp_path)))
    assert is_harmless(str(caught.value))
    assert re.findall(r"^  at .*\.parquet$", str(caught.value), re.MULTILINE)


def test_a_name_that_is_no_text_is_a_clean_error(tmp_path: Path) -> None:
    """A file name in another encoding than UTF-8 ends the run with its name, and not with a crash."""
    write_shards(tmp_path / "in", [20])
    (tmp_path / "in" / "shard-0.parquet").rename(os.fsdecode(bytes(tmp_path / "in") + b"/\xff\xfe.parquet"))
    with pytest.raises(DataError) as caught:
        batchinfer.run_job(str(doubling_job(tmp_path)))
    assert "\\udcff\\udcfe.parquet" in str(caught.value)


def test_names_of_a_thousand_bytes(tmp_path: Path) -> None:
    """A path as long as an object store allows is read, and cut where a line shows it."""
    deep = tmp_path / "in" / Path(*["é" * 60] * 8)
    write_shards(deep, [20])
    report = batchinfer.run_job(str(doubling_job(tmp_path, output={"meta": ["_source"]})))
    assert report.rows_ok == 20


def on_a_terminal(*arguments: str) -> str:
    """Run the command with a terminal for its output, and return what the terminal gets."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "batchinfer", *arguments],
        stdout=slave,
        stderr=slave,
        env={**environment(), "TERM": "dumb", "COLUMNS": "400"},
    )
    os.close(slave)
    said = b""
    try:
        while data := os.read(master, 1 << 16):
            said += data
    except OSError:
        pass  # the other end is closed: that is how a terminal ends
    process.wait(60)
    os.close(master)
    return said.decode(errors="replace").replace("\r\n", "\n")


def plant_parts(out: Path) -> None:
    for name in NAMES:
        (out / f"{name}.parquet").write_bytes(b"x")


def plant_living(out: Path) -> None:
    plant_heartbeats(out)
    (out / "_SUCCESS").unlink()  # else nobody is thought to be at work


def plant_heartbeats(out: Path) -> None:
    plan = next(path for path in (out / "_batchinfer").iterdir() if re.fullmatch("[0-9a-f]{8}", path.name))
    (plan / "hb").mkdir(exist_ok=True)
    for name in NAMES:
        (plan / "hb" / f"9-{name}-1.json").write_text("{}")


@pytest.mark.parametrize(
    ("verb", "plant"), [("verify", plant_parts), ("status", plant_living), ("gc", plant_heartbeats)]
)
def test_what_others_put_into_an_output_prints_harmlessly(
    tmp_path: Path, verb: str, plant: Callable[[Path], None]
) -> None:
    """Names that somebody else wrote into the output's folder do nothing to the terminal of who looks."""
    write_shards(tmp_path / "in", [20])
    job = str(doubling_job(tmp_path))
    batchinfer.run_job(job)
    plant(tmp_path / "out")
    said = on_a_terminal(verb, job)
    assert "forged" in said
    assert is_harmless(said), [char for char in said if not char.isprintable() and char != "\n"]
    assert not re.search(r"^\s*error\[data\]: forged", said, re.MULTILINE)


def test_a_preview_shows_rows_as_text(tmp_path: Path) -> None:
    """What rows hold is neither markup nor a command to the terminal, nor a reason to fail."""
    (tmp_path / "in").mkdir()
    texts = ["a[/b]", "[red]x[/red]", "[link=https://evil.example]y", ":boom:", *NAMES[:5]]
    table = pa.table({"id": range(9), "x": pa.array([1.0] * 9, pa.float32()), "te\x1b[31mxt": texts})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    job = doubling_job(tmp_path, output={"carry": ["id", "te\x1b[31mxt"]})
    document = json.loads(job.read_text())
    job.write_text(json.dumps(document))
    said = on_a_terminal("preview", str(job))
    assert is_harmless(said)
    for text in ("a[/b]", "[red]x[/red]", "[link=https://evil.example]y", ":boom:", "b\\x1b[31mred"):
        assert text in said


def test_events_show_foreign_text_harmlessly() -> None:
    """Whatever a worker prints or a warning quotes, the live display and log lines only print it."""
    for interactive, log_format in ((False, "text"), (False, "json"), (True, "text")):
        stream = io.StringIO()
        observers = make_observers(
            ObserveOptions(), job="a", interactive=interactive, log_format=log_format, stream=stream
        )
        started: dict[str, Any] = {
            "units_total": 1,
            "units_done": 0,
            "rows_total": 1,
            "rows_done": 0,
            "num_workers": 1,
        }
        events: list[Any] = [RunStarted(job="a", run="r", model=NAMES[1], output=NAMES[2], **started)]
        for name in NAMES:
            events += [WorkerSaid(worker=0, line=name), Warned(code="c", message=name)]
        for event in [*events, RunFinished(exit_code=0, seconds=1.0, complete=True)]:
            for observer in observers:
                observer.on_event(event)
        for observer in observers:
            observer.close()
        said = stream.getvalue()
        assert "forged" in said
        assert "\x1b[31m" not in said
        assert "\x1b]0" not in said
        assert not {"\x07", "\x9b", "\u202e", "\u2028", "\x85"} & set(said)
        assert interactive or is_harmless(said)
