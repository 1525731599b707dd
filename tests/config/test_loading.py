"""A job file that is right: what the job then holds, and where it says that it stands."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchinfer.config import Job, load_job
from batchinfer.errors import JobFileError

Write = Callable[[str | bytes], str]

WHOLE = """\
version: 1
job: product-embeddings
description: "12:30 is text"
labels: {team: search, country: NO}
input:
  path:
    - data/a.csv
    - s3://lake/b.csv
  delimiter: ";"
  limit: 100
preprocess:
  - tokenize: {column: text, tokenizer: models/tokenizer.json, max_length: 128}
  - image
model:
  path: models/model.onnx
  version: "1.10"
  providers: [cuda, cpu]
batching: {size: 32, by: rows}
postprocess:
  - softmax: logits
  - rename: {logits: score}
output:
  path: out
  format: jsonl
  carry: [id]
compute:
observe: {interval: 1e1}
"""


def test_every_section_becomes_the_options_of_its_class(job_file: Write, tmp_path: Path) -> None:
    """Keys reach the class that the format, the backend or the step's name stands for."""
    job = load_job(job_file(WHOLE))
    assert (job.name, job.version, job.description) == ("product-embeddings", 1, "12:30 is text")
    assert job.labels == {"team": "search", "country": "NO"}
    assert type(job.input).__name__ == "CsvOptions"
    assert job.input.path == (f"{tmp_path}/data/a.csv", "s3://lake/b.csv")
    assert job.input.limit == 100
    assert [step.name for step in job.preprocess] == ["tokenize", "image"]
    assert job.preprocess[0].path == ("preprocess", 0, "tokenize")
    assert job.preprocess[0].options.model_dump()["tokenizer"] == f"{tmp_path}/models/tokenizer.json"
    assert (job.model.backend, job.model.path, job.model.version) == (
        "onnx",
        f"{tmp_path}/models/model.onnx",
        "1.10",
    )
    assert [step.options.model_dump() for step in job.postprocess] == [
        {"from_": "logits", "temperature": 1.0},
        {"names": {"logits": "score"}},
    ]
    assert type(job.output).__name__ == "JsonlOutputOptions"
    assert job.compute.devices == "auto"
    assert job.observe.interval == 10.0


def test_the_document_is_what_was_written(job_file: Write) -> None:
    """The document has no default and no guess in it, so that it can be stored and loaded again."""
    job = load_job(job_file(WHOLE))
    assert job.document["model"] == {
        "path": "models/model.onnx",
        "version": "1.10",
        "providers": ["cuda", "cpu"],
    }
    assert job.document["preprocess"][1] == "image"
    again = load_job(json.loads(json.dumps(job.document)))
    assert again.document == job.document


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (("job",), "job.yaml:2:1"),
        (("input", "path", 1), "job.yaml:8:7"),
        (("input", "delimiter"), "job.yaml:9:3"),
        (("preprocess", 0, "tokenize", "max_length"), "job.yaml:12:64"),
        (("preprocess", 1), "job.yaml:13:5"),
        (("input", "where"), "job.yaml:5:1"),
        (("checkpoint", "unit_rows"), "job.yaml:1:1"),
    ],
)
def test_places(job_file: Write, path: tuple[str | int, ...], place: str) -> None:
    """A key has the place where it begins; an absent one that of its nearest ancestor."""
    assert load_job(job_file(WHOLE)).place(path) == place


def test_a_job_crosses_a_process_border(job_file: Write) -> None:
    """A message is JSON; what is rebuilt from it equals the job, places included."""
    job = load_job(job_file(WHOLE), overrides=["input.limit=5"])
    rebuilt = Job.from_message(json.loads(json.dumps(job.to_message())))
    assert rebuilt == job
    assert rebuilt.place(("input", "limit")) == "--set input.limit"


def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, minimal: str) -> None:
    """`-` reads standard input; paths are then relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(minimal.encode())))
    job = load_job("-")
    assert (job.origin, job.root) == ("stdin", str(tmp_path))
    assert job.place(("model", "path")) == "stdin:5:3"


def test_a_mapping(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mapping from Python may hold paths and tuples, and is neither kept nor changed."""
    monkeypatch.chdir(tmp_path)
    source: dict[str, Any] = {
        "job": "a",
        "input": {"path": Path("data")},
        "model": {"path": "m.onnx"},
        "output": {"path": "out", "carry": ("a", "b")},
    }
    job = load_job(source)
    assert job.input.path == f"{tmp_path}/data"
    assert job.output.carry == ("a", "b")
    assert source["output"]["carry"] == ("a", "b")
    assert job.place(("input", "path")) == "job"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "job  description: must be a finite number"),
        (2**70, "job  description: 1180591620717411303424 does not fit a 64-bit number"),
        ({1: 2}, "job  description: has the key 1, which is not text"),
        (b"x", "job  description: is a Python bytes; a job has texts, numbers, lists and mappings"),
    ],
)
def test_a_mapping_holds_what_yaml_can_say(value: object, message: str) -> None:
    """What could not stand in a job file is refused from Python too."""
    with pytest.raises(JobFileError) as caught:
        load_job({"job": "a", "description": value})
    assert str(caught.value).split("\n")[0] == message


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        ("data/*.csv", "csv"),
        ("data/*.tsv.gz", "csv"),
        ("data/dt=*/*.parquet", "parquet"),
        ("data", "parquet"),
        ("data/v1.2", "parquet"),
    ],
)
def test_the_format_is_guessed(path: str, suffix: str) -> None:
    """The suffix tells the format; without one it is Parquet."""
    job = load_job(
        {"job": "a", "input": {"path": path}, "model": {"path": "m.onnx"}, "output": {"path": "o"}}
    )
    assert job.input.format == suffix


@pytest.mark.parametrize(
    ("path", "backend"), [("m.pt2", "torch"), ("m.onnx", "onnx"), ("hub/bert", "transformers")]
)
def test_the_backend_is_guessed(
    path: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suffix tells the backend; a folder with a config.json is a transformers model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hub/bert").mkdir(parents=True)
    (tmp_path / "hub/bert/config.json").write_text("{}")
    job = load_job({"job": "a", "input": {"path": "d"}, "model": {"path": path}, "output": {"path": "o"}})
    assert job.model.backend == backend


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jop.yaml", "jop.yaml: there is no such file; did you mean 'job.yaml'?"),
        ("zzz", "zzz: there is no such file\n  → job files there: job.yaml"),
        ("nowhere/job.yaml", "nowhere/job.yaml: there is no such file"),
        (".", ".: is a folder, not a job file\n  → job.yaml exists"),
        ("a\0b", "'a\\x00b': cannot be read: embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read(job_file: Write, minimal: str, name: str, message: str) -> None:
    """A wrong name is answered with the nearest right one."""
    job_file(minimal)
    with pytest.raises(JobFileError) as caught:
        load_job(name)
    assert str(caught.value) == message


def test_a_component_that_cannot_be_imported(
    job_file: Write, monkeypatch: pytest.MonkeyPatch, minimal: str
) -> None:
    """A backend whose package is missing is a problem of the job file, beside the others."""
    monkeypatch.setitem(sys.modules, "config_stand_ins", None)
    with pytest.raises(JobFileError, match=r"job.yaml:2:1  input.format: 'parquet' cannot be imported: "):
        load_job(job_file(minimal))


def test_problems_beyond_a_hundred_are_counted(job_file: Write, minimal: str) -> None:
    """A report stays readable, however broken the file is."""
    with pytest.raises(JobFileError) as caught:
        load_job(job_file(minimal + "".join(f"zz{index}: 1\n" for index in range(150))))
    lines = str(caught.value).split("\n")
    assert len(lines) == 101
    assert lines[-1] == "job.yaml: and 50 more problems"
