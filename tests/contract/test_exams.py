"""Every registered component sits the exam of its door: a new one without a case fails here."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batchinfer import registry, tensors
from batchinfer.data import TensorSpec, Unit
from batchinfer.runner.plan import schema_of
from batchinfer.testing import check_backend
from tests.conftest import encoded

Case = Callable[[Path], Any]


def build(kind: str, name: str, **options: Any) -> Any:
    """Build a component as the job file would."""
    cls = registry.load(kind, name)
    return cls(cls.Options.model_validate_json(json.dumps(options)))


def tokenizer(folder: Path) -> str:
    """Write a small tokenizer."""
    import tokenizers

    words = {"[UNK]": 0, "a": 1, "b": 2, "row": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


def png() -> bytes:
    """Return a small picture."""
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (9, 7), (10, 20, 30)).save(out, "PNG")
    return out.getvalue()


def write(kind: str, path: Path) -> None:
    """Write fifty rows in one of the formats."""
    table = pa.table({"n": range(50), "t": [f"row {row}" for row in range(50)]})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=9)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        path.write_text("n,t\n" + "".join(f"{row['n']},{row['t']}\n" for row in table.to_pylist()))


ROWS = pa.RecordBatch.from_pydict(
    {
        "x": pa.array([1.0, 2.0, 3.0], pa.float32()),
        "t": pa.array(["a b", "row", ""]),
        "image": pa.array([png(), b"none", png()], pa.binary()),
    }
)

PREPROCESSORS: dict[str, Case] = {
    "columns": lambda _: {"columns": ["x"], "to": "v", "dtype": "float32"},
    "tokenize": lambda folder: {"column": "t", "tokenizer": tokenizer(folder)},
    "image": lambda _: {"column": "image", "size": 4},
    "prompt": lambda _: {"template": "{{ t }}!"},
    "python": lambda _: {"function": "exam_code:step", "output": {"y": "float32"}},
}
VECTOR = {"s": TensorSpec("s", "float32", (None, 3))}
TOKENS = {"s": TensorSpec("s", "float32", (None, None, 3))}
NUMBERS = {"s": TensorSpec("s", "int64", (None,))}
POSTPROCESSORS: dict[str, tuple[dict[str, Any], dict[str, TensorSpec]]] = {
    "argmax": ({}, VECTOR),
    "softmax": ({}, VECTOR),
    "sigmoid": ({}, VECTOR),
    "top_k": ({"k": 2}, VECTOR),
    "threshold": ({}, VECTOR),
    "labels": ({"names": ["a", "b", "c"]}, NUMBERS),
    "mean_pool": ({}, TOKENS),
    "cls_pool": ({}, TOKENS),
    "normalize": ({}, VECTOR),
    "cast": ({"dtype": "float64"}, VECTOR),
    "rename": ({"names": {"s": "z"}}, VECTOR),
    "python": ({"function": "exam_code:after", "output": {"y": "float32[3]"}}, VECTOR),
}
SOURCES = ("parquet", "jsonl", "csv", "arrow", "files")
SINKS = ("parquet", "jsonl")
BACKENDS = ("onnx", "torch", "transformers", "python", "simulated")


@pytest.fixture(autouse=True)
def exam_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module with user functions on the path."""
    (tmp_path / "exam_code.py").write_text(
        "def step(rows):\n    return {'y': rows['x']}\n\ndef after(results):\n    return {'y': results['s'] * 2}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "exam_code", raising=False)


def test_every_component_has_a_case() -> None:
    """No registered name is without an exam."""
    cases = {
        "preprocessors": set(PREPROCESSORS),
        "postprocessors": set(POSTPROCESSORS),
        "sources": set(SOURCES),
        "sinks": set(SINKS),
        "backends": set(BACKENDS),
    }
    assert {kind: set(names) for kind, names in registry.BUILT_IN.items()} == cases


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_preprocessor(tmp_path: Path, name: str) -> None:
    """As many rows out as in, of the schema that was said; the same from two threads; input untouched."""
    step = build("preprocessors", name, **PREPROCESSORS[name](tmp_path))
    assert (step.input_columns() or frozenset()) <= set(ROWS.schema.names)
    said = step.output_schema(ROWS.schema)
    before = ROWS.to_pydict()
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(step.encode, [ROWS, ROWS])
    for done in (one, two):
        assert done.rows.schema.equals(said)
        assert done.rows.num_rows == ROWS.num_rows
        assert set(done.failed) <= set(range(ROWS.num_rows))
    assert one.rows.equals(two.rows)
    assert one.failed == two.failed
    assert ROWS.to_pydict() == before
    # A row's result does not depend on its neighbours.
    alone = step.encode(ROWS.slice(2, 1))
    assert alone.rows.to_pylist() == one.rows.slice(2, 1).to_pylist()
    assert step.encode(ROWS.slice(0, 0)).rows.schema.equals(said)


@pytest.mark.parametrize("name", POSTPROCESSORS)
def test_postprocessor(name: str) -> None:
    """What is given is what was said; rows are independent; nothing is changed in place; no row is fine."""
    options, specs = POSTPROCESSORS[name]
    step = build("postprocessors", name, **options)
    said = step.output_specs(specs)
    shape = (4, *(5 if size is None else size for size in specs["s"].shape[1:]))
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if specs["s"].dtype == "int64":
        values = np.array([0, 2, 1, 0])
    inputs = {
        "attention_mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
    }
    before = values.copy()
    whole = step.apply({"s": values}, inputs)
    np.testing.assert_array_equal(values, before)
    assert list(whole) == list(said)
    for key, spec in said.items():
        type_ = tensors.arrow_type(spec)
        column = tensors.to_arrow(whole[key], type_)
        alone = step.apply({"s": values[2:3]}, {"attention_mask": inputs["attention_mask"][2:3]})
        one = tensors.to_arrow(alone[key], type_).to_pylist()
        if spec.dtype == "string":
            assert one == column[2:3].to_pylist()
        else:
            np.testing.assert_allclose(
                np.array(one, float), np.array(column[2:3].to_pylist(), float), atol=1e-6
            )
        none = step.apply({"s": values[:0]}, {"attention_mask": inputs["attention_mask"][:0]})
        assert len(tensors.to_arrow(none[key], type_)) == 0


@pytest.mark.parametrize("name", SOURCES)
def test_source(tmp_path: Path, name: str) -> None:
    """The same unit gives the same rows, from two threads and from another instance."""
    (tmp_path / "data").mkdir()
    if name == "files":
        for at in range(5):
            (tmp_path / "data" / f"{at}.bin").write_bytes(bytes([at]) * at)
        columns = ["path", "bytes"]
    else:
        write(name, tmp_path / "data" / f"a.{name}")
        columns = ["t", "n"]

    def read(_: int) -> list[Any]:
        source = build("sources", name, path=str(tmp_path / "data"))
        entries = source.list_entries()
        schema = schema_of(source, entries)
        shard, _schema = source.inspect(entries[0], index=0)
        unit = Unit(index=0, shard=shard, start=1, stop=shard.num_rows)
        chunks = list(source.read(unit, schema=schema, columns=columns, batch_rows=4))
        assert [int(number) for chunk in chunks for number in chunk.numbers] == list(range(1, shard.num_rows))
        return [row for chunk in chunks for row in chunk.rows.to_pylist()]

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(read, [1, 2])
    assert one == two
    assert len(one) == (4 if name == "files" else 49)


@pytest.mark.parametrize("name", SINKS)
def test_sink(name: str) -> None:
    """The same rows give the same bytes however they are chunked and in whatever pieces they come; rows and
    failed rows are counted back."""
    error = {"stage": "s", "code": "model", "message": "m", "attempts": 1, "source": "a", "row": 3}
    table = pa.table(
        {
            "id": range(6),
            "v": pa.array([[1.0, 2.0]] * 5 + [None], pa.list_(pa.float32(), 2)),
            "t": ["ü", None, "c", "d", "e", "f"],
            "_error": pa.array([None] * 5 + [error]),
        }
    )
    sink = build("sinks", name, path="/out")
    keys = {"batchinfer.rows_error": "1", "a": "b"}
    whole = encoded(sink, table, keys)
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1, 3), table.slice(4)])
    assert bytes(encoded(sink, pieces, dict(reversed(keys.items())))) == bytes(whole)
    assert bytes(encoded(sink, table, keys, cuts=(1, 4))) == bytes(whole)
    assert sink.count(bytes(whole)) == (6, 1)
    empty = encoded(sink, table.slice(0, 0), {"batchinfer.rows_error": "0"})
    assert sink.count(bytes(empty)) == (0, 0)


@pytest.mark.parametrize("name", ["simulated", "python"])
def test_light_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The shipped exam passes on backends that need no model; the others sit it in tests/backends."""
    (tmp_path / "exam_model.py").write_text(
        "class Double:\n"
        "    inputs = {'x': 'float32[?]'}\n"
        "    outputs = {'y': 'float32[?]'}\n"
        "    def __call__(self, batch):\n"
        "        return {'y': batch['x'] * 2}\n"
    )
    options = {"seconds_per_batch": 0} if name == "simulated" else {"entry": "exam_model:Double"}
    check_backend(lambda: build("backends", name, backend=name, **options))


def test_heavy_backends_sit_the_exam_too() -> None:
    """tests/backends examines onnx, torch and transformers with models of their own."""
    text = "".join(path.read_text() for path in (Path(__file__).parents[1] / "backends").glob("*.py"))
    for backend in ("OnnxBackend", "TorchBackend", "TransformersBackend"):
        assert backend in text or backend.removesuffix("Backend").lower() in text.lower()
    assert "check_backend" in text


PLUGIN = """
from batchinfer.config.sections import ModelOptions
from batchinfer.data import TensorSpec


class TripleOptions(ModelOptions):
    backend: str = "triple"


class Triple:
    Options = TripleOptions
    inputs = (TensorSpec("x", "float32", (None,)),)
    outputs = (TensorSpec("y", "float32", (None,)),)

    def __init__(self, options):
        pass

    def load(self, device, *, threads):
        pass

    def forward(self, tensors):
        return {"y": tensors["x"] * 3}

    def close(self):
        pass
"""


def test_a_plugin_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of another package, known by its entry point alone, runs a job through the command."""
    import subprocess

    from tests.conftest import doubling_job, environment, write_shards
    from tests.runner.commands import read

    site = tmp_path / "site"
    (site / "triple-1.0.dist-info").mkdir(parents=True)
    (site / "triple_plugin.py").write_text(PLUGIN)
    (site / "triple-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: triple\nVersion: 1.0\n"
    )
    (site / "triple-1.0.dist-info" / "entry_points.txt").write_text(
        "[batchinfer.backends]\ntriple = triple_plugin:Triple\n"
    )
    write_shards(tmp_path / "in", [40])
    job = doubling_job(tmp_path)
    document = json.loads(job.read_text())
    document["model"] = {"backend": "triple"}
    job.write_text(json.dumps(document))
    done = subprocess.run(
        [sys.executable, "-m", "batchinfer", "run", str(job)],
        env={**environment(), "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "out")["y"].to_pylist() == [1.5 * row for row in range(40)]
