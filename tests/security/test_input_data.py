"""Input data comes from strangers: it never runs, it never reaches past its buffers, and it stays in bounds."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

import batchinfer
from batchinfer import registry
from batchinfer.errors import BatchinferError, DataError, JobFileError
from tests.conftest import Run, environment
from tests.security.canary import malicious_pickle

DOUBLING: dict[str, Any] = {"backend": "simulated", "seconds_per_batch": 0}


def job(folder: Path, *, format_: str = "parquet", **sections: Any) -> dict[str, Any]:
    """Return a job over a folder's `in`."""
    return {
        "job": "stranger",
        "input": {"path": str(folder / "in"), "format": format_},
        "model": DOUBLING,
        "output": {"path": f"memory://{folder.name}/out"},
        **sections,
    }


def write(folder: Path, table: pa.Table, name: str = "a.parquet", **options: Any) -> Path:
    """Write a table as Parquet or Arrow IPC."""
    (folder / "in").mkdir(exist_ok=True)
    path = folder / "in" / name
    if name.endswith(".parquet"):
        pq.write_table(table, path, **options)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, **options) as writer:
            writer.write_table(table)
    return path


def rows(**columns: Any) -> pa.Table:
    return pa.table({"x": pa.array([1.0, 2.0], pa.float32()), **columns})


@pytest.mark.parametrize("step", ["image", "tokenize", "columns", "prompt"])
def test_a_pickled_tensor_in_a_column_is_only_bytes(tmp_path: Path, trap: Path, step: str) -> None:
    """What looks like a saved tensor is not loaded by any step: its row fails, or the job is refused."""
    write(tmp_path, rows(data=[malicious_pickle(trap)] * 2))
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    steps: dict[str, Any] = {
        "image": {"column": "data", "size": 8},
        "tokenize": {"column": "data", "tokenizer": str(tmp_path / "tokenizer.json")},
        "columns": {"columns": ["data"], "to": "t", "dtype": "float32"},
        "prompt": {"template": "{{ data }}", "to": "t"},
    }
    document = job(tmp_path, preprocess=[{step: steps[step]}], errors={"max": "100%"})
    if step == "image":
        signature = {"inputs": {"pixel_values": "float32[?, 3, 8, 8]"}, "outputs": {"y": "float32[?]"}}
        document["model"] = {**DOUBLING, "signature": signature}
        assert batchinfer.run_job(document).rows_error == 2
        return
    try:
        batchinfer.run_job(document)
    except BatchinferError as error:
        refused = error.exit_code in {65, 78}
    else:
        refused = step == "prompt"  # bytes print as bytes
    assert refused


@pytest.mark.parametrize("index", [-1, -(2**40), 3, 2**40, 2**63 - 1])
@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_an_index_beyond_a_table_is_a_clean_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, index: int
) -> None:
    """A token id that the model's table does not have reads no foreign memory: the batch is refused."""
    if backend == "onnx":
        table = numpy_helper.from_array(np.ones((3, 2), np.float32), "table")
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
        graph = helper.make_graph(
            [helper.make_node("Gather", ["table", "ids"], ["y"])], "g", [ids], [y], [table]
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
        model: dict[str, Any] = {"backend": "onnx", "path": str(tmp_path / "m.onnx")}
    else:
        code = "import torch\ndef table():\n    return torch.nn.Embedding(3, 2)\n"
        (tmp_path / "stranger_table.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "stranger_table", raising=False)
        signature = {"inputs": {"input": "int64[?]"}, "outputs": {"y": "float32[?, 2]"}}
        model = {"backend": "torch", "entry": "stranger_table:table", "signature": signature}
    cls = registry.load("backends", backend)
    loaded = cls(cls.Options.model_validate_json(json.dumps(model)))
    loaded.load("cpu", threads=1)
    name = loaded.inputs[0].name
    if backend == "onnx" and index == -1:
        assert loaded.forward({name: np.array([index])})["y"].tolist() == [[1, 1]]  # ONNX counts from the end
        return
    with pytest.raises(DataError, match="refused a batch of"):
        loaded.forward({name: np.array([0, index])})
    loaded.close()


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_pickles_in_metadata_are_not_loaded(tmp_path: Path, trap: Path, name: str) -> None:
    """A Python extension type, whose metadata is a pickle, and pickles in a file's metadata stay unread."""
    pickled = malicious_pickle(trap)
    marks = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickled,
        "PARQUET:field_id": "1",
    }
    schema = pa.schema(
        [pa.field("x", pa.float32()), pa.field("e", pa.int64(), metadata=marks)],
        metadata={"pandas": b'{"index_columns": []}', "huggingface": pickled, "torch": pickled},
    )
    table = pa.table([pa.array([1.0, 2.0], pa.float32()), pa.array([1, 2])], schema=schema)
    write(tmp_path, table, name)
    document = job(tmp_path, format_="parquet" if name.endswith("parquet") else "arrow")
    document["output"]["carry"] = ["e"]
    assert batchinfer.run_job(document).rows_ok == 2


def broken_offsets() -> Iterator[list[int]]:
    yield from (
        [0, 8, 16, 2**30],
        [0, -8, 16, 24],
        [24, 16, 8, 0],
        [0, 2**31 - 1, 16, 24],
        [-(2**31), 0, 8, 24],
    )


@pytest.mark.parametrize("offsets", list(broken_offsets()))
def test_offsets_beyond_the_buffer_are_a_clean_error(tmp_path: Path, offsets: list[int]) -> None:
    """A file whose texts claim to lie outside of its bytes is refused before they are looked at."""
    path = write(tmp_path, rows(t=["aaaaaaaa", "bbbbbbbb"]).slice(0, 2), "a.arrow")
    table = pa.table({"t": ["aaaaaaaa", "bbbbbbbb", "cccccccc"], "x": pa.array([1, 2, 3], pa.float32())})
    write(tmp_path, table, "a.arrow")
    data = path.read_bytes()
    sound = np.array([0, 8, 16, 24], np.int32).tobytes()
    assert data.count(sound) == 1
    path.write_bytes(data.replace(sound, np.array(offsets, np.int32).tobytes()))
    document = job(tmp_path, format_="arrow")
    document["output"]["carry"] = ["t"]
    with pytest.raises(DataError, match=r"Offset invariant failure") as caught:
        batchinfer.run_job(document)
    assert "a.arrow" in str(caught.value.where)
    assert caught.value.exit_code == 65


def test_a_rotten_file_ends_its_worker_at_most(tmp_path: Path, batchinfer: Run) -> None:
    """Files of random bytes behind a right beginning are told by the command: it does not die of them."""
    chance = np.random.default_rng(20)
    path = write(tmp_path, rows(t=["aaaaaaaa", "bbbbbbbb"]), "a.arrow")
    sound = path.read_bytes()
    for at in range(3):
        data = bytearray(sound)
        for place in chance.integers(8, len(data) - 8, 12):
            data[place] = int(chance.integers(256))
        (tmp_path / "in" / f"rotten-{at}.arrow").write_bytes(bytes(data))
    document = job(tmp_path, format_="arrow", output={"path": "out/"})
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    done = batchinfer("run", str(tmp_path / "job.yaml"))
    assert done.returncode in {0, 65}, done.stderr
    assert "Traceback" not in done.stderr


def dictionary_bomb(path: Path) -> None:
    """20,000 times the same megabyte: 20 GB in 300 bytes."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"s": text}), path / "a.parquet", compression="zstd", store_schema=False)


def nested_dictionary_bomb(path: Path) -> None:
    """The same megabyte again, deep inside of a list of structs."""
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000, np.int32)), pa.array(["x" * 1_000_000]))
    inside = pa.StructArray.from_arrays([text], names=["t"])
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, 20_001, 100, dtype=np.int32)), inside)
    pq.write_table(pa.table({"s": lists}), path / "a.parquet", compression="zstd", store_schema=False)


def line_bomb(path: Path) -> None:
    """One line of 400 MB, in 40 KB."""
    with pa.CompressedOutputStream(str(path / "a.jsonl.zst"), "zstd") as stream:
        stream.write(b'{"s": "')
        for _ in range(400):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"}\n')


def quote_bomb(path: Path) -> None:
    """A quote that is opened, and closed after 400 MB."""
    with pa.CompressedOutputStream(str(path / "a.csv.zst"), "zstd") as stream:
        stream.write(b's\n"')
        for _ in range(400):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"\n')


READ = """
import json, resource, sys
from batchinfer import registry
from batchinfer.data import Unit
from batchinfer.errors import BatchinferError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

path, format_ = sys.argv[1:]
cls = registry.load("sources", format_)
source = cls(cls.Options.model_validate_json(json.dumps({"path": path, "format": format_})))
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 3 * 2**30,) * 2)
before, rows, said = peak(), 0, ""
try:
    for index, entry in enumerate(source.list_entries()):
        shard, schema = source.inspect(entry, index=index)
        unit = Unit(index=0, shard=shard, start=0, stop=shard.num_rows)
        for chunk in source.read(unit, schema=schema, columns=["s"], batch_rows=4096):
            rows += len(chunk.numbers)
except BatchinferError as error:
    said = f"{error.exit_code} {error.message}"
print(json.dumps([rows, said, peak() - before]))
"""


def read_in_a_child(path: Path, format_: str) -> tuple[int, str, int]:
    """Read all of a file's rows in a process that may take 3 GiB; return the rows, the error and the MiB
    that it took."""
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path), format_],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, said, size = json.loads(done.stdout)
    return int(found), str(said), int(size)


@pytest.mark.parametrize(
    ("make", "format_", "says"),
    [
        (dictionary_bomb, "parquet", "decode to .* bytes, above the limit"),
        (nested_dictionary_bomb, "parquet", "decode to .* bytes, above the limit"),
        (line_bomb, "jsonl", "a line is longer than"),
        (quote_bomb, "csv", "a quote is never closed|a record is longer than"),
    ],
)
def test_a_decompression_bomb_takes_little_memory(tmp_path: Path, make: Any, format_: str, says: str) -> None:
    """A small file that becomes gigabytes is refused while it is decoded, by what comes out of it: what
    its footer says is not believed."""
    make(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2**20
    _, said, size = read_in_a_child(tmp_path, format_)
    assert said.startswith("65 ")
    assert pa.compute.match_substring_regex(pa.scalar(said), says).as_py(), said
    assert size < 900, f"{size} MiB"


def test_an_arrow_bomb_is_a_clean_error(tmp_path: Path) -> None:
    """A compressed record batch that decodes to far more than the file has is refused and named."""
    zeros = pa.array(np.zeros(70_000_000, np.int64))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    table = pa.table({"s": zeros})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema, options=options) as out,
    ):
        out.write_table(table)
    assert (tmp_path / "a.arrow").stat().st_size < 2**17
    found, said, _ = read_in_a_child(tmp_path, "arrow")
    assert found == 0
    assert said.startswith("65 "), said


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, pixels: bytes, *, more: bytes = b"", bits: int = 1, colour: int = 0
) -> bytes:
    """Return a PNG that claims a size, with these compressed pixels and further chunks before them."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(num_bytes: int) -> bytes:
    """Return so many zeros, compressed."""
    packer = zlib.compressobj(9)
    pieces = [packer.compress(bytes(2**20)) for _ in range(num_bytes // 2**20)]
    return b"".join(pieces) + packer.flush()


def image_bombs() -> dict[str, bytes]:
    """Return images that are small as files: by their size, their texts, their profile, their pixels."""
    plenty = zeros(80 * 2**20)
    one = zlib.compress(bytes(2))
    webp = struct.pack("<I", 4 + 8 + 10) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff" * 6
    jpeg = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65500, 65500, 1) + b"\x01\x11\0" + b"\xff\xd9"
    return {
        "width and height": png(60_000, 60_000, one),
        "a line as wide as allowed": png(2**31 - 1, 1, one),
        "text": png(8, 8, zlib.compress(bytes(16)), more=chunk(b"zTXt", b"a\0\0" + plenty)),
        "international text": png(
            8, 8, zlib.compress(bytes(16)), more=chunk(b"iTXt", b"a\0\1\0\0\0" + plenty)
        ),
        "profile": png(8, 8, zlib.compress(bytes(16)), more=chunk(b"iCCP", b"a\0\0" + plenty)),
        "webp canvas": b"RIFF" + webp,
        "jpeg": jpeg,
    }


DECODE = """
import json, resource, sys, pathlib
import pyarrow as pa
from batchinfer import registry

cls = registry.load("preprocessors", "image")
step = cls(cls.Options.model_validate_json('{"column": "image", "size": 32}'))
step.output_schema(pa.schema([("image", pa.binary())]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
failed = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    found = step.encode(pa.RecordBatch.from_pydict({"image": [path.read_bytes()]}))
    failed[path.name] = [failure.code for failure in found.failed.values()]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([failed, grown // 1024]))
"""


def test_image_bombs_cost_their_rows(tmp_path: Path) -> None:
    """Images that would take gigabytes fail as rows, undecoded, whichever part of the file it is that
    inflates."""
    bombs = image_bombs()
    for name, data in bombs.items():
        assert len(data) < 2**20
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", DECODE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed, grown = json.loads(done.stdout)
    assert failed == {name: ["decode"] for name in bombs}
    assert grown < 300, f"{grown} MiB"


def test_scaling_cannot_inflate_an_image(tmp_path: Path) -> None:
    """A thin line whose shortest side would be scaled up is refused by what it would become."""
    cls = registry.load("preprocessors", "image")
    step = cls(cls.Options.model_validate_json('{"column": "image", "size": 1024}'))
    step.output_schema(pa.schema([("image", pa.binary())]))
    line = png(100_000, 1, zlib.compress(bytes(12_501)))
    found = step.encode(pa.RecordBatch.from_pydict({"image": [line]}))
    assert "would be scaled to" in found.failed[0].message


def test_a_column_of_bytes_is_no_number(tmp_path: Path) -> None:
    """Raw buffers feed a model only through a type that says what they are."""
    write(tmp_path, pa.table({"x": [b"\0" * 4, b"\0" * 4]}))
    with pytest.raises(JobFileError, match=r"cannot take column `x: binary"):
        batchinfer.run_job(job(tmp_path))
