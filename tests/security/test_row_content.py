"""What rows hold is theirs: it is in the results that a job asks for, and in no log, error or file beside them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

import batchinfer
from batchinfer.config.sections import ObserveOptions
from batchinfer.storage import open_store
from batchinfer.telemetry import make_observers
from tests.conftest import Run
from tests.security.canary import PERSON, assert_no_canary

Scene = Callable[[Path], dict[str, Any]]
SCENES: dict[str, Scene] = {}

CODE = f"""
import numpy as np

def step(rows):
    if rows.num_rows:
        raise ValueError(f"cannot do {{rows['text'].to_pylist()}}")
    return {{"x": rows["x"]}}

def nonsense(rows):
    return {{"x": rows["text"]}}

def post(results):
    if len(results["y"]):
        raise KeyError({PERSON!r})
    return results

def post_texts(results):
    return {{"y": [{PERSON!r}] * len(results["y"])}}

class Model:
    inputs = {{"text": "string"}}
    outputs = {{"y": "string"}}
    def __call__(self, batch):
        raise RuntimeError("no answer to " + batch["text"][0].as_py())

class Echo(Model):
    def __call__(self, batch):
        return {{"y": batch["text"]}}

class Wrong(Model):
    outputs = {{"y": "float32"}}
    def __call__(self, batch):
        return {{"y": batch["text"]}}
"""


def scene(make: Scene) -> Scene:
    """Register a job that fails over its rows."""
    SCENES[make.__name__.strip("_")] = make
    return make


def job(folder: Path, **sections: Any) -> dict[str, Any]:
    """Return a job over rows with a person in them."""
    (folder / "in").mkdir(exist_ok=True)
    if not list((folder / "in").iterdir()):
        table = pa.table({"x": pa.array([1.0, 2.0], pa.float32()), "text": [f"{PERSON} was here"] * 2})
        pq.write_table(table, folder / "in" / "a.parquet")
    return {
        "job": "private",
        "input": {"path": "in/"},
        "model": {"backend": "simulated", "seconds_per_batch": 0},
        "output": {"path": "out/"},
        "errors": {"max": "100%"},
        **sections,
    }


@scene
def _a_step_that_quotes_its_rows(folder: Path) -> dict[str, Any]:
    return job(folder, preprocess=[{"python": "private_code:step"}])


@scene
def _a_step_that_gives_another_type(folder: Path) -> dict[str, Any]:
    step = {"function": "private_code:nonsense", "output": {"x": "float32"}}
    return job(folder, preprocess=[{"python": step}])


@scene
def _a_class_that_quotes_its_rows(folder: Path) -> dict[str, Any]:
    return job(folder, model={"backend": "python", "entry": "private_code:Model"})


@scene
def _a_class_that_gives_another_type(folder: Path) -> dict[str, Any]:
    return job(folder, model={"backend": "python", "entry": "private_code:Wrong"})


@scene
def _a_result_that_cannot_be_written(folder: Path) -> dict[str, Any]:
    model = {"backend": "python", "entry": "private_code:Echo"}
    return job(folder, model=model, output={"path": "out/", "columns": {"y": "int64"}})


@scene
def _a_result_that_is_no_date(folder: Path) -> dict[str, Any]:
    model = {"backend": "python", "entry": "private_code:Echo"}
    return job(folder, model=model, output={"path": "out/", "columns": {"y": "timestamp[us]"}})


@scene
def _a_function_over_results_that_quotes_them(folder: Path) -> dict[str, Any]:
    return job(folder, postprocess=[{"python": "private_code:post"}])


@scene
def _a_function_over_results_that_gives_texts(folder: Path) -> dict[str, Any]:
    step = {"function": "private_code:post_texts", "output": {"y": "float32"}}
    return job(folder, postprocess=[{"python": step}])


@scene
def _a_model_that_reads_numbers(folder: Path) -> dict[str, Any]:
    text = helper.make_tensor_value_info("text", TensorProto.STRING, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    node = helper.make_node("Cast", ["text"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "g", [text], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "m.onnx"
    )
    return job(folder, model={"path": "m.onnx"})


@scene
def _a_line_of_another_type(folder: Path) -> dict[str, Any]:
    (folder / "in").mkdir()
    # Behind what the types are guessed from.
    lines = [*({"x": 1.0, "filler": "." * 1000} for _ in range(4500)), {"x": PERSON, "filler": ""}]
    (folder / "in" / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return job(folder, input={"path": "in/", "format": "jsonl"})


@scene
def _a_line_that_is_no_json(folder: Path) -> dict[str, Any]:
    (folder / "in").mkdir()
    (folder / "in" / "a.jsonl").write_text('{"x": 1.0}\n{"x": ' + PERSON + "}\n")
    return job(folder, input={"path": "in/", "format": "jsonl"})


@scene
def _a_field_of_another_type(folder: Path) -> dict[str, Any]:
    (folder / "in").mkdir()
    (folder / "in" / "a.csv").write_text(f"x\n1.0\n{PERSON}\n")
    return job(folder, input={"path": "in/", "format": "csv", "types": {"x": "float32"}})


@scene
def _a_record_with_a_field_too_many(folder: Path) -> dict[str, Any]:
    (folder / "in").mkdir()
    (folder / "in" / "a.csv").write_text(f"x\n1.0\n2.0,{PERSON}\n")
    return job(folder, input={"path": "in/", "format": "csv"})


@scene
def _texts_as_numbers(folder: Path) -> dict[str, Any]:
    return job(folder, preprocess=[{"columns": {"columns": ["text"], "to": "x", "dtype": "float32"}}])


@scene
def _texts_as_images(folder: Path) -> dict[str, Any]:
    signature = {"inputs": {"pixel_values": "float32[?, 3, 8, 8]"}, "outputs": {"y": "float32[?]"}}
    model = {"backend": "simulated", "signature": signature}
    return job(folder, preprocess=[{"image": {"column": "text", "size": 8}}], model=model)


@scene
def _texts_as_paths(folder: Path) -> dict[str, Any]:
    signature = {"inputs": {"pixel_values": "float32[?, 3, 8, 8]"}, "outputs": {"y": "float32[?]"}}
    model = {"backend": "simulated", "signature": signature}
    step = {"image": {"column": "text", "size": 8, "root": "photos/"}}
    return job(folder, preprocess=[step], model=model)


@scene
def _a_template_that_fails(folder: Path) -> dict[str, Any]:
    signature = {"inputs": {"prompt": "string[?]"}, "outputs": {"y": "float32[?]"}}
    step = {
        "prompt": {
            "template": "{{ text.nothing.here }} {{ 1 // (text|length - text|length) }}",
            "to": "prompt",
        }
    }
    return job(folder, preprocess=[step], model={"backend": "simulated", "signature": signature})


@scene
def _a_condition_on_texts(folder: Path) -> dict[str, Any]:
    return job(folder, input={"path": "in/", "where": "x > 5 or text > 'Z'"})


@pytest.fixture
def _private_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the code that quotes rows beside the job."""
    (tmp_path / "private_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "private_code", raising=False)


@pytest.mark.usefixtures("_private_code")
@pytest.mark.parametrize("name", SCENES)
def test_what_rows_hold_is_not_told(tmp_path: Path, name: str) -> None:
    """However a job fails over its rows, what is shown, logged and left behind says which row of which
    file, and not what stands there."""
    document = SCENES[name](tmp_path)
    root = f"memory://{tmp_path.name}/out"
    document["output"]["path"] = root
    log = io.StringIO()
    observers = make_observers(
        ObserveOptions(), job="private", interactive=False, log_format="json", stream=log
    )
    said = ""
    try:
        batchinfer.run_job(document, observers=observers)
    except batchinfer.BatchinferError as error:
        said = f"{error} {error!r} {error.args}"
        failed = error.exit_code in {65, 78}
    else:
        failed = '"rows_error": 2' in log.getvalue() or name == "a_condition_on_texts"
    assert failed, said
    store = open_store(root, {})
    for entry in store.entries(root):
        (tmp_path / "left" / entry.uri.rpartition("/")[2]).parent.mkdir(exist_ok=True)
        (tmp_path / "left" / entry.uri.rpartition("/")[2]).write_bytes(store.read(entry.uri))
    for part in (PERSON, "Erika", "Mustermann"):
        assert_no_canary(tmp_path / "left", said, log.getvalue(), canary=part)


def test_a_traceback_that_is_asked_for_quotes_rows(
    tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who debugs on a machine of his own sees everything: that is asked for by a variable."""
    (tmp_path / "private_code.py").write_text(CODE)
    (tmp_path / "job.yaml").write_text(json.dumps(_a_step_that_quotes_its_rows(tmp_path)))
    plain = batchinfer("run", str(tmp_path / "job.yaml"))
    assert_no_canary(tmp_path / "out", plain.stdout, plain.stderr, canary=PERSON)
    monkeypatch.setenv("BATCHINFER_DEBUG", "1")
    done = batchinfer("run", str(tmp_path / "job.yaml"), "--force")
    assert done.returncode == 0
    assert PERSON in done.stderr
