"""Whatever is wrong with a job, its files or its rows: a clear message, a documented exit code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto, helper

import batchinfer
from tests.conftest import numbers

Change = Callable[[Path, dict[str, Any]], None]
CASES: list[tuple[str, Change, int, str]] = []


def case(exit_code: int, message: str) -> Callable[[Change], Change]:
    """Register a way to spoil a sound job, and what must come of it."""

    def register(change: Change) -> Change:
        CASES.append((change.__name__.strip("_"), change, exit_code, message))
        return change

    return register


def identity(path: Path, *, width: int | None = None, dtype: int = TensorProto.FLOAT) -> None:
    """Write an ONNX model that hands its input `x` through as `y`."""
    shape = ["rows"] if width is None else ["rows", width]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


def sound(folder: Path) -> dict[str, Any]:
    """Write a sound input and model, and return the job over them."""
    (folder / "in").mkdir()
    pq.write_table(numbers(0, 20), folder / "in" / "a.parquet")
    identity(folder / "model.onnx")
    return {
        "job": "sound",
        "input": {"path": str(folder / "in")},
        "model": {"path": str(folder / "model.onnx")},
        "output": {"path": str(folder / "out"), "carry": ["id"]},
    }


def replace_column(folder: Path, name: str, column: pa.Array) -> None:
    table = numbers(0, 20)
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, column), folder / "in" / "a.parquet")


@case(78, r"unknown key; did you mean 'carry'\?")
def _unknown_key(folder: Path, job: dict[str, Any]) -> None:
    job["output"]["cary"] = []


@case(78, r"batching\.size: must be")
def _wrong_type(folder: Path, job: dict[str, Any]) -> None:
    job["batching"] = {"size": "many"}


@case(78, r"unknown preprocess step 'tokenise'; did you mean 'tokenize'\?")
def _unknown_step(folder: Path, job: dict[str, Any]) -> None:
    job["preprocess"] = ["tokenise"]


@case(78, r"unknown backend 'onxx'; did you mean 'onnx'\?")
def _unknown_backend(folder: Path, job: dict[str, Any]) -> None:
    job["model"]["backend"] = "onxx"


@case(78, r"nope\.onnx")
def _missing_model(folder: Path, job: dict[str, Any]) -> None:
    job["model"]["path"] = str(folder / "nope.onnx")


@case(65, r"model\.onnx")
def _model_is_no_onnx(folder: Path, job: dict[str, Any]) -> None:
    (folder / "model.onnx").write_bytes(b"this is no model at all")


@case(67, r"the model has sha256 [0-9a-f]{64}, and model\.sha256 asks for 0{64}")
def _another_model_than_pinned(folder: Path, job: dict[str, Any]) -> None:
    job["model"]["sha256"] = "0" * 64


@case(71, r"CUDA")
def _provider_that_is_not_there(folder: Path, job: dict[str, Any]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    job["model"]["providers"] = ["cuda"]


@case(78, r"allow_unsafe_model")
def _pickled_model(folder: Path, job: dict[str, Any]) -> None:
    torch.save({"w": torch.zeros(1)}, folder / "weights.pth")
    (folder / "nets.py").write_text("import torch\ndef net():\n    return torch.nn.Linear(1, 1)\n")
    job["model"] = {"backend": "torch", "path": str(folder / "weights.pth"), "entry": "nets:net"}


@case(78, r"tokenizer")
def _missing_tokenizer(folder: Path, job: dict[str, Any]) -> None:
    job["preprocess"] = [{"tokenize": {"column": "text", "tokenizer": str(folder / "no.json")}}]


@case(78, r"not a tokenizer\.json")
def _tokenizer_is_none(folder: Path, job: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text("{}")
    job["preprocess"] = [{"tokenize": {"column": "text", "tokenizer": str(folder / "tokenizer.json")}}]


@case(66, r"input\.path matches no file")
def _no_files(folder: Path, job: dict[str, Any]) -> None:
    job["input"]["path"] = str(folder / "in" / "*.pq")


@case(66, r"'a\.csv', none of them \.parquet")
def _files_of_another_kind(folder: Path, job: dict[str, Any]) -> None:
    (folder / "in" / "a.parquet").unlink()
    (folder / "in" / "a.csv").write_text("id\n1\n")


@case(65, r"not a readable Parquet file")
def _truncated_shard(folder: Path, job: dict[str, Any]) -> None:
    data = (folder / "in" / "a.parquet").read_bytes()
    (folder / "in" / "b.parquet").write_bytes(data[:-20])


@case(65, r"not a readable Parquet file")
def _empty_shard(folder: Path, job: dict[str, Any]) -> None:
    (folder / "in" / "b.parquet").write_bytes(b"")


@case(65, r"a\.parquet")
def _corrupt_page(folder: Path, job: dict[str, Any]) -> None:
    path = folder / "in" / "a.parquet"
    pq.write_table(numbers(0, 2000), path, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(bytes(data))


@case(65, r"'x' is float in .*a\.parquet and string in .*b\.parquet")
def _schema_drift(folder: Path, job: dict[str, Any]) -> None:
    table = numbers(0, 3).set_column(1, "x", pa.array(["a", "b", "c"]))
    pq.write_table(table, folder / "in" / "b.parquet")


@case(65, r"column 'x' is in .*a\.parquet, and missing in .*b\.parquet")
def _column_missing_in_a_shard(folder: Path, job: dict[str, Any]) -> None:
    pq.write_table(numbers(0, 3).drop_columns(["x"]), folder / "in" / "b.parquet")
    job["output"]["carry"] = ["id", "x"]


@case(65, r"the files mix partition layouts")
def _mixed_layouts(folder: Path, job: dict[str, Any]) -> None:
    (folder / "in" / "dt=1").mkdir()
    pq.write_table(numbers(0, 3), folder / "in" / "dt=1" / "b.parquet")


@case(65, r"column 'kind' is both in the file and in its folders' names")
def _column_twice(folder: Path, job: dict[str, Any]) -> None:
    (folder / "in" / "kind=1").mkdir()
    (folder / "in" / "a.parquet").rename(folder / "in" / "kind=1" / "a.parquet")


@case(78, r"column 'idd' is not in the input; did you mean 'id'\?")
def _unknown_carried_column(folder: Path, job: dict[str, Any]) -> None:
    job["output"]["carry"] = ["idd"]


@case(78, r"preprocess\[0\]\.columns: column 'z' is not there")
def _unknown_step_column(folder: Path, job: dict[str, Any]) -> None:
    job["preprocess"] = [{"columns": ["z"]}]


@case(78, r"column 'text' has type string, which is no number")
def _text_as_number(folder: Path, job: dict[str, Any]) -> None:
    job["preprocess"] = [{"columns": ["text"]}]


@case(78, r"expected a column, a number or a 'text'")
def _where_that_is_none(folder: Path, job: dict[str, Any]) -> None:
    job["input"]["where"] = "id >"


@case(78, r"input\.where: column 'idx' is not in the input")
def _where_on_an_unknown_column(folder: Path, job: dict[str, Any]) -> None:
    job["input"]["where"] = "idx > 3"


@case(78, r"must be a share from 0% to 100%")
def _sample_that_is_none(folder: Path, job: dict[str, Any]) -> None:
    job["input"]["sample"] = "many"


@case(78, r"output\.path")
def _output_in_the_input(folder: Path, job: dict[str, Any]) -> None:
    job["output"]["path"] = str(folder / "in")


@case(67, r"the output folder holds files that this job did not write: mine\.txt")
def _output_of_somebody_else(folder: Path, job: dict[str, Any]) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "mine.txt").write_text("precious")


@case(78, r"partition_by")
def _partition_by_what_is_not_carried(folder: Path, job: dict[str, Any]) -> None:
    job["output"]["partition_by"] = ["kind"]


@case(78, r"model: input `x: float32\[\?\]` has no column 'nope'")
def _input_without_a_column(folder: Path, job: dict[str, Any]) -> None:
    job["model"]["inputs"] = {"x": "nope"}


@case(78, r"the model has no input 'xx'; did you mean 'x'\?")
def _unknown_input(folder: Path, job: dict[str, Any]) -> None:
    job["model"]["inputs"] = {"xx": "x"}


@case(78, r"input `x: float32\[\?\]` cannot take column `id: int64\[\?\]`: int64 does not fit float32")
def _lossy_cast(folder: Path, job: dict[str, Any]) -> None:
    job["model"]["inputs"] = {"x": "id"}


@case(78, r"input `x: float32\[\?, 3\]` cannot take column `x: float32\[\?\]`: the shapes differ")
def _wrong_shape(folder: Path, job: dict[str, Any]) -> None:
    identity(folder / "model.onnx", width=3)


@case(78, r"there is no result 'logits'; there are y")
def _unknown_result(folder: Path, job: dict[str, Any]) -> None:
    job["postprocess"] = [{"sigmoid": "logits"}]


@case(78, r"output\.columns\.z: there is no such result; the results are y: float32\[\?\]")
def _unknown_output_column(folder: Path, job: dict[str, Any]) -> None:
    job["output"]["columns"] = {"z": "float32"}


@case(78, r"no such type: 'flaot32'")
def _unknown_type(folder: Path, job: dict[str, Any]) -> None:
    job["output"]["columns"] = {"y": "flaot32"}


@case(78, r"'y' would stand twice in the output")
def _name_twice(folder: Path, job: dict[str, Any]) -> None:
    replace_column(folder, "id", pa.array(range(20)))
    table = numbers(0, 20).append_column("y", pa.array(range(20)))
    pq.write_table(table, folder / "in" / "a.parquet")
    job["output"]["carry"] = ["id", "y"]


@case(3, r"1 of 20 rows failed, more than errors\.max \(0\.1%\) allows\n.*column 'x' is null")
def _null_for_the_model(folder: Path, job: dict[str, Any]) -> None:
    replace_column(folder, "x", pa.array([None] + [1.0] * 19, pa.float32()))


@case(3, r"x holds NaN or infinity, which model\.forbid_nan refuses")
def _nan_that_the_model_forbids(folder: Path, job: dict[str, Any]) -> None:
    replace_column(folder, "x", pa.array([float("nan")] + [1.0] * 19, pa.float32()))
    job["model"]["forbid_nan"] = True


@case(3, r"a row failed in model: column 'x' is null\n.*a\.parquet row 0")
def _first_bad_row_ends_the_run(folder: Path, job: dict[str, Any]) -> None:
    replace_column(folder, "x", pa.array([None] + [1.0] * 19, pa.float32()))
    job["errors"] = {"on_error": "fail"}


@case(3, r"not a JPEG, PNG or WebP image \(5 bytes\)")
def _picture_that_is_none(folder: Path, job: dict[str, Any]) -> None:
    replace_column(folder, "text", pa.array([b"hello"] * 20, pa.binary()))
    identity(folder / "model.onnx", width=192)
    job["preprocess"] = [
        {"image": {"column": "text", "size": 8, "layout": "hwc"}},
        {"python": {"function": "flat:flat", "output": {"x": "float32[192]"}}},
    ]
    (folder / "flat.py").write_text(
        "import pyarrow as pa\n"
        "def flat(rows):\n"
        "    return {'x': pa.FixedSizeListArray.from_arrays(rows['pixel_values'].storage.flatten(), 192)}\n"
    )


@case(3, r"users:fails raised ValueError\b(?s:.*)BATCHINFER_DEBUG=1")
def _function_that_raises(folder: Path, job: dict[str, Any]) -> None:
    (folder / "users.py").write_text("def fails(rows):\n    raise ValueError('no')\n")
    job["preprocess"] = [{"python": {"function": "users:fails", "output": {"x": "float32"}}}]


@case(3, r"20 of 20 rows failed.*\n.*got 1 rows and returned 3 in 'x'")
def _function_that_loses_rows(folder: Path, job: dict[str, Any]) -> None:
    (folder / "users.py").write_text(
        "import pyarrow as pa\ndef few(rows):\n    return {'x': pa.array([1.0] * 3)}\n"
    )
    job["preprocess"] = [{"python": {"function": "users:few", "output": {"x": "float32"}}}]


@case(78, r"users\.py defines no 'nope'")
def _function_that_is_not_there(folder: Path, job: dict[str, Any]) -> None:
    (folder / "users.py").write_text("def other(rows):\n    return rows\n")
    job["preprocess"] = [{"python": "users:nope"}]


@case(65, r"not a JSON object: Expecting ':' delimiter.*\n.*a\.jsonl:2")
def _broken_json_line(folder: Path, job: dict[str, Any]) -> None:
    (folder / "in" / "a.jsonl").write_text('{"id": 1, "x": 2.0}\n{"id": 2, "x"\n')
    job["input"] = {"path": str(folder / "in" / "a.jsonl")}


@case(65, r"3 fields where 2 are expected")
def _broken_csv_row(folder: Path, job: dict[str, Any]) -> None:
    (folder / "in" / "a.csv").write_text("id,x\n1,2.0\n2,3.0,4\n")
    job["input"] = {"path": str(folder / "in" / "a.csv")}


@pytest.mark.parametrize(
    ("change", "code", "message"), [row[1:] for row in CASES], ids=[row[0] for row in CASES]
)
def test_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change, code: int, message: str
) -> None:
    """Each way to be wrong ends with its message and its exit code, and leaves no finished output."""
    monkeypatch.chdir(tmp_path)
    job = sound(tmp_path)
    change(tmp_path, job)
    with pytest.raises(batchinfer.BatchinferError) as caught:
        batchinfer.run_job(job)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert int(caught.value.exit_code) == code, str(caught.value)
    assert code == 3 or not (tmp_path / "out" / "_SUCCESS").exists()


def test_there_are_enough_of_them() -> None:
    """The table has at least thirty kinds, each once."""
    names = [row[0] for row in CASES]
    assert len(names) == len(set(names)) >= 30


def test_the_sound_job_is_sound(tmp_path: Path) -> None:
    """What the cases spoil is whole before."""
    report = batchinfer.run_job(sound(tmp_path))
    assert (report.rows_ok, report.rows_error) == (20, 0)
    assert json.loads((tmp_path / "out" / "_SUCCESS").read_text())["rows"] == 20
