"""The fingerprint changes with what the output depends on, and with nothing else."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from batchinfer.config import Fingerprint, content_sha256, diff, fingerprint, load_job
from batchinfer.config.error_section import ErrorsOptions
from batchinfer.config.fields import nested_options
from batchinfer.config.fingerprints import digest_of
from batchinfer.config.hashing import external_files
from batchinfer.config.limits import LimitsOptions
from batchinfer.config.sections import (
    BatchingOptions,
    CheckpointOptions,
    ComputeOptions,
    InputOptions,
    JobHead,
    ModelOptions,
    ObserveOptions,
    OutputOptions,
)
from batchinfer.errors import JobFileError
from batchinfer.options import Options

BASE: dict[str, Any] = {
    "job": "a",
    "input": {"path": "data"},
    "preprocess": [{"tokenize": {"column": "t", "tokenizer": "tokenizer.json"}}, {"python": "mine:encode"}],
    "model": {"path": "model.onnx", "backend": "onnx"},
    "postprocess": ["softmax"],
    "output": {"path": "out", "carry": ["id"]},
}

# Every key of every section, with another value than its default.
CHANGES: dict[str, Any] = {
    "input.path": "other",
    "input.format": "csv",
    "input.partitioning": "none",
    "input.columns": ["id", "t"],
    "input.where": "id > 3",
    "input.limit": 3,
    "input.sample": "1%",
    "model.path": "other.onnx",
    "model.backend": "torch",
    "model.entry": "mine:encode",
    "model.version": "v2",
    "model.inputs": {"ids": "input_ids"},
    "model.precision": "fp16",
    "model.forbid_nan": True,
    "batching.size": 3,
    "batching.by": "rows",
    "batching.window_rows": 3,
    "batching.buckets": 3,
    "batching.packed": True,
    "output.format": "jsonl",
    "output.carry": ["id", "t"],
    "output.columns": {"score": "float32"},
    "output.partition_by": ["id"],
    "output.meta": ["_row"],
    "errors.on_error": "fail",
    "errors.to": "separate",
    "errors.keep_input": True,
    "errors.check_finite": True,
    "preprocess.0.tokenize.column": "u",
    "preprocess.0.tokenize.tokenizer": "other.json",
    "preprocess.0.tokenize.max_length": 3,
    "preprocess.0.tokenize.truncate": False,
    "preprocess.1.python": "mine:other",
}
NEUTRAL: dict[str, Any] = {
    "job": "b",
    "version": 1,
    "description": "other",
    "labels": {"a": "b"},
    "input.storage_options": {"region": "x"},
    "model.sha256": "0" * 64,
    "model.allow_unsafe_model": True,
    "model.canary": {"path": "c.parquet"},
    "model.canary.path": {"path": "c.parquet"},
    "model.canary.rtol": {"path": "c.parquet", "rtol": 0.1},
    "model.canary.atol": {"path": "c.parquet", "atol": 0.1},
    "output.path": "elsewhere",
    "output.storage_options": {"region": "x"},
    "output.commit": "deterministic",
    "checkpoint.unit_rows": 3,
    "checkpoint.every": 3.0,
    "checkpoint.spill_bytes": 3,
    "errors.max_per_partition": "1%",
    "errors.max": 3,
    "errors.retry": {"timeout": 0},
    "errors.retry.transient": 1,
    "errors.retry.timeout": 1,
    "compute.devices": "cpu",
    "compute.workers_per_device": 3,
    "compute.threads": 3,
    "compute.readers": 3,
    "compute.concurrency": 3,
    "compute.loaders": "processes",
    "compute.host_memory": 3,
    "compute.affinity": "none",
    "compute.determinism": "bit",
    "compute.claims": "lease",
    "compute.heartbeat": 3.0,
    "compute.stall_timeout": 3.0,
    "limits.deadline": 3.0,
    "limits.max_rows": 3,
    "limits.max_device_hours": 3.0,
    "limits.price_per_device_hour": 3.0,
    "limits.max_cost": 3.0,
    "limits.grace": 3.0,
    "input.incremental": True,
    "observe.interval": 3.0,
    "observe.log_file": "run.jsonl",
    "observe.pushgateway": {"url": "http://h:1"},
    "observe.pushgateway.url": "http://h:1",
    "observe.pushgateway.every": {"url": "http://h:1", "every": 3},
    "observe.pushgateway.instance": {"url": "http://h:1", "instance": "x"},
    "observe.pushgateway.timeout": {"url": "http://h:1", "timeout": 3},
    "observe.pushgateway.user": {"url": "http://127.0.0.1:1", "user": "x", "password": "${env:HOME}"},
    "observe.pushgateway.password": {"url": "http://127.0.0.1:1", "user": "x", "password": "${env:PWD}"},
    "observe.pushgateway.token": {"url": "http://127.0.0.1:1", "token": "${env:HOME}"},
    "observe.pushgateway.ca": {"url": "https://h:1", "ca": "x.pem"},
    "observe.openlineage": {"file": "x.jsonl"},
    "observe.openlineage.file": {"file": "x.jsonl"},
    "observe.openlineage.url": {"url": "http://h:1"},
    "observe.openlineage.api_key": {"url": "http://h:1", "api_key": "${env:HOME}"},
    "observe.openlineage.namespace": {"file": "x.jsonl", "namespace": "n"},
    "observe.openlineage.timeout": {"url": "http://h:1", "timeout": 3},
    "observe.listen": "127.0.0.1:9400",
    "observe.textfile": "x.prom",
    "observe.compat_names": True,
    "preprocess.0.tokenize.processes": 3,
}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "other.onnx", "tokenizer.json", "other.json"):
        Path(name).write_text(name)
    Path("mine.py").write_text("def encode(rows): ...\ndef other(rows): ...\n")


def of(document: dict[str, Any]) -> Fingerprint:
    """Return the fingerprint of a document."""
    return fingerprint(load_job(document))


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the base job with one value put in."""
    document = copy.deepcopy(BASE)
    node: Any = document
    inner = (
        r"(pushgateway|canary|openlineage)\."
        r"(every|instance|timeout|user|password|token|ca|path|.tol|file|url|api_key|namespace)$"
    )
    *parents, last = re.sub(inner, r"\1", path).split(".")
    if path.endswith("pushgateway.url"):
        parents, last, value = ["observe"], "pushgateway", {"url": value}
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    if path == "limits.max_cost":
        node["price_per_device_hour"] = 1.0
    return document


def keys(cls: type[Options], prefix: str) -> Iterator[str]:
    """Yield the keys of a class and of the classes inside it."""
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        nested = nested_options(field.annotation)
        if nested is not None:
            yield from keys(nested, f"{prefix}{name}.")


def test_every_key_is_judged() -> None:
    """A key that is added must be put into one of the two tables above: a decision, not an accident."""
    sections: dict[str, type[Options]] = {
        "": JobHead,
        "input.": InputOptions,
        "model.": ModelOptions,
        "batching.": BatchingOptions,
        "output.": OutputOptions,
        "checkpoint.": CheckpointOptions,
        "errors.": ErrorsOptions,
        "compute.": ComputeOptions,
        "limits.": LimitsOptions,
        "observe.": ObserveOptions,
    }
    known = {key for prefix, cls in sections.items() for key in keys(cls, prefix)}
    assert {key for key in CHANGES | NEUTRAL if not key.startswith("preprocess")} == known
    assert not CHANGES.keys() & NEUTRAL.keys()


@pytest.mark.parametrize("path", CHANGES)
def test_what_changes_it(path: str) -> None:
    """A value that changes the output changes the digest, and the difference names it."""
    before, after = of(BASE), of(changed(path, CHANGES[path]))
    assert before.digest != after.digest
    lines = diff(before.parts, after.parts)
    assert lines
    shown = path.replace(".0.", "[0].").replace(".1.", "[1].")
    assert any(line.startswith(shown) for line in lines)


@pytest.mark.parametrize("path", NEUTRAL)
def test_what_leaves_it(path: str) -> None:
    """A value that changes nothing in the output leaves the digest."""
    assert of(changed(path, NEUTRAL[path])) == of(BASE)


def test_defaults_are_filled_in() -> None:
    """Writing a default down changes nothing; nor do parameters, or the folder of the job."""
    document = changed("batching", {"size": "auto", "window_rows": "auto"})
    document["postprocess"] = [{"softmax": {"temperature": 1.0}}]
    document["input"] = {"path": "${param:p}", "format": "parquet"}
    document["params"] = {"p": "data"}
    assert of(document) == of(BASE)


def test_contents_count_and_not_names(tmp_path: Path) -> None:
    """A model that moves is the same; one that changes by a byte is another."""
    before = of(BASE)
    (tmp_path / "moved").mkdir()
    (tmp_path / "model.onnx").rename(tmp_path / "moved/m.onnx")
    assert of(changed("model.path", "moved/m.onnx")) == before
    (tmp_path / "moved/m.onnx").write_text("model.onny")
    after = of(changed("model.path", "moved/m.onnx"))
    (line,) = diff(before.parts, after.parts)
    old, new = (parts.parts["model"]["path"]["sha256"][:4] for parts in (before, after))
    assert line == f"model.path content sha256 {old}… -> {new}…"


def test_code_counts_by_its_content(tmp_path: Path) -> None:
    """Editing the module of an entry point changes the fingerprint; a file beside it does not."""
    before = of(BASE)
    (tmp_path / "beside.py").write_text("x = 1\n")
    assert of(BASE) == before
    (tmp_path / "mine.py").write_text("def encode(rows): return rows\n")
    (line,) = diff(before.parts, of(BASE).parts)
    assert line.startswith("preprocess[1].python.function content sha256 ")


def test_a_package_counts_as_a_whole(tmp_path: Path) -> None:
    """Any file of the package in the job's folder may change what its function does."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine.py").unlink()
    (tmp_path / "mine/__init__.py").write_text("")
    (tmp_path / "mine/deep.py").write_text("def f(): ...\n")
    (tmp_path / "mine/other.py").write_text("")
    document = changed("preprocess.1.python", "mine.deep:f")
    before = of(document)
    (tmp_path / "mine/other.py").write_text("x = 1\n")
    assert of(document) != before


def test_installed_code_counts_by_its_version() -> None:
    """A function of an installed package stands for the version of its distribution."""
    parts = of(changed("preprocess.1.python", "yaml:safe_load")).parts
    assert parts["preprocess"][1]["python"]["function"].keys() == {"entry", "version"}


def test_versions_are_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another minor version of the library that computes makes another output."""
    before = of(BASE)
    assert before.parts["engine"].keys() == {"pyarrow", "onnxruntime"}
    monkeypatch.setattr("batchinfer.config.fingerprints.metadata.version", lambda name: f"0.7.{len(name)}")
    assert diff(before.parts, of(BASE).parts)[0].endswith("-> 0.7")


def test_the_digest_is_canonical() -> None:
    """The digest is a function of the parts alone, and survives JSON."""
    found = of(BASE)
    again = json.loads(json.dumps(found.parts))
    assert digest_of(dict(reversed(again.items()))) == found.digest
    assert len(found.digest) == 64


def test_model_files_count() -> None:
    """Further files of the model, hashed elsewhere, are part of it."""
    job = load_job(BASE)
    one, two = (fingerprint(job, model_files={"weights": sha * 64}) for sha in "ab")
    assert diff(one.parts, two.parts) == ["model_files.weights aaaa… -> bbbb…"]


def onnx_with_weights(path: str, *locations: str) -> None:
    """Write an ONNX model with a tensor in each of these files, the value before the key where it can."""
    tensors = []
    for at, location in enumerate(locations):
        tensor = onnx.TensorProto(name=f"w{at}", data_type=1, dims=[1], data_location=1)
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
        tensors.append(tensor)
    data = helper.make_model(helper.make_graph([], "g", [], [], tensors)).SerializeToString()
    for location in locations:
        key, value = b"\x0a\x08location", b"\x12" + bytes([len(location)]) + location.encode()
        data = data.replace(key + value, value + key)
    Path(path).write_bytes(data)


@pytest.mark.parametrize("model", ["model.onnx", "model.bin"])
@pytest.mark.parametrize("location", ["weights.bin", "a/weights.bin", "w" * 200])
def test_external_weights_count(tmp_path: Path, model: str, location: str) -> None:
    """The files that an ONNX model keeps its weights in belong to its content, whatever they are called."""
    (tmp_path / "a").mkdir()
    onnx_with_weights(model, "other/weights.bin", location)
    weights = tmp_path / location
    weights.write_text("1")
    document = changed("model.path", model)
    assert external_files(model) == [weights]
    before = of(document)
    weights.write_text("12")
    (line,) = diff(before.parts, of(document).parts)
    assert line.startswith(f"model.path.{location} ")


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    """A location that leads out of the model's folder is left to the backend, which refuses it."""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "inner").mkdir()
    onnx_with_weights("inner/model.onnx", "../secret", str(tmp_path / "secret"))
    assert external_files(str(tmp_path / "inner/model.onnx")) == []


def test_missing_files_are_told_at_once() -> None:
    """Every model or tokenizer that is not there is named, with its place and the nearest name."""
    document = changed("model.path", "modle.onnx")
    document["preprocess"][0]["tokenize"]["tokenizer"] = "s3://b/t.json"
    with pytest.raises(JobFileError) as caught:
        of(document)
    assert str(caught.value).split("\n") == [
        "job  model.path: there is no 'modle.onnx'; did you mean 'model.onnx'?",
        "job  preprocess[0].tokenize.tokenizer: 's3://b/t.json' is a URL; it must be on the local disk",
    ]


def test_folders_have_a_content(tmp_path: Path) -> None:
    """A folder's hash covers names and contents, and leaves hidden files out."""
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "a/x").write_text("1")
    first = content_sha256(str(folder))
    (folder / ".cache").write_text("1")
    assert content_sha256(str(folder)) == first
    (folder / "a/x").rename(folder / "a/y")
    assert content_sha256(str(folder)) != first


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash is remembered until the file's size or time changes."""
    file = tmp_path / "big"
    file.write_text("1")
    first = content_sha256(str(file))
    monkeypatch.setattr("batchinfer.config.hashing.hashlib.sha256", None)
    assert content_sha256(str(file)) == first
