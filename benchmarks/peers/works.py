"""The works, as every peer runs them: a model that takes Arrow rows and gives `id` and `y`.

The peers differ in the way that rows take, not in what is computed: this file is imported by each of them.
`encode` prepares rows (tokens, pixels, features), `compute` runs the model; calling does both.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

FEATURES = tuple(f"f{at:02}" for at in range(32))
WIDTH = 384
SIDE = 224
MAX_TOKENS = 256
BLOCK = 4_096  # rows: what is interleaved stays in the cache
STAMP = struct.Struct("ddq")
Array = np.ndarray[Any, Any]


@dataclass
class Order:
    """What a peer is told on its command line: the work, its folder, where results go, and settings."""

    work: str
    folder: str
    out: str
    settings: dict[str, Any]

    @property
    def shards(self) -> list[str]:
        """The input files."""
        return sorted(str(path) for path in Path(self.folder, "in").glob("*.parquet"))

    def open(self) -> Work:
        """Open the work with the order's threads and batch size."""
        chosen = {key: self.settings[key] for key in ("threads", "batch") if key in self.settings}
        return open_work(self.work, self.folder, **chosen)


def order() -> Order:
    """Read the command line."""
    work, folder, out, settings = sys.argv[1:5]
    Path(out).mkdir(parents=True, exist_ok=True)
    return Order(work, folder, out, json.loads(settings))


def stamp(begin: float, end: float, rows: int) -> None:
    """Note a batch of the model where the harness will look for it, one file per process."""
    folder = os.environ.get("STAMPS")
    if folder is None:
        return
    global _stamps  # noqa: PLW0603 - one file, open as long as the process is
    if _stamps is None or _stamps[0] != os.getpid():
        path = f"{folder}/{os.getpid()}"
        _stamps = os.getpid(), os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(_stamps[1], STAMP.pack(begin, end, rows))


_stamps: tuple[int, int] | None = None


def begun() -> None:
    """Note that rows are being prepared: where that is much of the work, it must not go uncounted."""
    now = time.time()
    stamp(now, now, 0)


def checksums(y: Any) -> Array:
    """Return each row's results, summed over fixed weights: float64 of shape (rows,)."""
    y = y.combine_chunks() if isinstance(y, pa.ChunkedArray) else y
    flat = y if pa.types.is_floating(y.type) else y.flatten()
    rows = flat.to_numpy(zero_copy_only=False).reshape(len(y), -1)
    return np.asarray(rows @ np.cos(np.arange(rows.shape[1])), np.float64)


class Work:
    """Takes rows of Arrow, returns `id` and `y`."""

    columns: tuple[str, ...]

    def encode(self, rows: Any) -> Any:
        """Prepare rows for the model."""
        raise NotImplementedError

    def compute(self, encoded: Any) -> Array:
        """Run the model: float32 of shape (rows,) or (rows, width), in the order of the rows."""
        raise NotImplementedError

    def __call__(self, rows: Any) -> pa.Table:
        """Do both."""
        return result(rows["id"], self.compute(self.encode(rows)))


def result(ids: Any, y: Array) -> pa.Table:
    """Return a table of ids and results; vectors become lists of fixed size."""
    return pa.table({"id": ids, "y": as_arrow(y)})


def as_arrow(y: Array) -> pa.Array:
    """Return results as a column, without a copy."""
    return pa.array(y) if y.ndim == 1 else pa.FixedSizeListArray.from_arrays(y.reshape(-1), y.shape[1])


def session(path: str, threads: int) -> Any:
    """Open an ONNX model on the CPU, the way that was fastest here."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Text(Work):
    """Sentence embeddings: tokens, batches of like length under a budget of padded tokens, mean, length 1."""

    columns = ("id", "text")

    def __init__(self, folder: str, *, threads: int = 1, batch: int = 512) -> None:
        import tokenizers

        self._session = session(f"{folder}/model/model.onnx", threads)
        self._tokenizer = tokenizers.Tokenizer.from_file(f"{folder}/model/tokenizer.json")
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._budget = batch

    def encode(self, rows: Any) -> tuple[int, list[tuple[Array, dict[str, Array]]]]:
        """Return padded batches, each with the rows that it holds."""
        encodings = self._tokenizer.encode_batch_fast(rows["text"].to_pylist())
        lengths = np.array([len(encoding) for encoding in encodings])
        batches = []
        for picked in packed(lengths, self._budget):
            ids = np.zeros((len(picked), lengths[picked[-1]]), np.int64)
            for at, row in enumerate(picked):
                ids[at, : lengths[row]] = encodings[row].ids
            mask = (np.arange(ids.shape[1]) < lengths[picked][:, None]).astype(np.int64)
            given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            batches.append((picked, given))
        return len(encodings), batches

    def compute(self, encoded: tuple[int, list[tuple[Array, dict[str, Array]]]]) -> Array:
        """Embed, batch by batch."""
        num_rows, batches = encoded
        y = np.empty((num_rows, WIDTH), np.float32)
        for picked, given in batches:
            begin = time.time()
            hidden = self.forward(given)
            stamp(begin, time.time(), len(picked))
            y[picked] = pooled(hidden, given["attention_mask"])
        return y

    def forward(self, given: dict[str, Array]) -> Array:
        """Run the bare model on one padded batch."""
        hidden: Array = self._session.run(["last_hidden_state"], given)[0]
        return hidden


def packed(lengths: Array, budget: int) -> Iterator[Array]:
    """Yield row numbers, sorted by length, in batches of at most `budget` padded tokens."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * lengths[order[stop]] <= budget:
            stop += 1
        yield order[start:stop]
        start = stop


def pooled(hidden: Array, mask: Array) -> Array:
    """Average the tokens that are no padding, and scale to length 1."""
    weights = mask.astype(np.float32)
    y: Array = np.einsum("rtw,rt->rw", hidden, weights) / weights.sum(1, keepdims=True)
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-12)
    return y


class Images(Work):
    """JPEGs, fully decoded and stretched to 224 x 224 by Pillow, through a small convolutional network."""

    columns = ("id", "jpeg")

    def __init__(self, folder: str, *, threads: int = 1, batch: int = 16) -> None:
        self._session = session(f"{folder}/model.onnx", threads)
        self._batch = batch

    def encode(self, rows: Any) -> Array:
        """Return pixels, uint8[rows, 224, 224, 3]."""
        from PIL import Image

        begun()
        pixels = np.empty((len(rows["jpeg"]), SIDE, SIDE, 3), np.uint8)
        for at, jpeg in enumerate(rows["jpeg"]):
            with Image.open(io.BytesIO(jpeg.as_buffer())) as image:
                small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pixels[at] = np.asarray(small)
        return pixels

    def compute(self, encoded: Array) -> Array:
        """Classify, `batch` rows at a time."""
        return _in_batches(self._session, "pixels", encoded, self._batch)


class Table(Work):
    """32 columns, interleaved to feature vectors, through a small network."""

    columns = ("id", *FEATURES)

    def __init__(self, folder: str, *, threads: int = 1, batch: int = 8_192) -> None:
        self._session = session(f"{folder}/model.onnx", threads)
        self._batch = batch

    def encode(self, rows: Any) -> Array:
        """Return float32[rows, 32]."""
        begun()
        columns = [_numpy(rows[name]) for name in FEATURES]
        features = np.empty((len(columns[0]), len(columns)), np.float32)
        for start in range(0, len(features), BLOCK):
            block = features[start : start + BLOCK]
            for at, column in enumerate(columns):
                block[:, at] = column[start : start + BLOCK]
        return features

    def compute(self, encoded: Array) -> Array:
        """Score, `batch` rows at a time."""
        return _in_batches(self._session, "features", encoded, self._batch)[:, 0]


def _in_batches(model: Any, name: str, given: Array, size: int) -> Array:
    results = []
    for start in range(0, len(given), size):
        batch = given[start : start + size]
        begin = time.time()
        results.append(model.run(["y"], {name: batch})[0])
        stamp(begin, time.time(), len(batch))
    return np.concatenate(results)


def _numpy(column: Any) -> Array:
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return column.to_numpy(zero_copy_only=False)


class Device(Work):
    """A device that one process at a time may use; 1,024 rows take it `seconds`. y = 2 x, 384 numbers a row.

    It is its own batchinfer model, too.
    """

    columns = ("id", "x")
    inputs = {"x": f"float32[?, {WIDTH}]"}
    outputs = {"y": f"float32[?, {WIDTH}]"}

    def __init__(self, seconds: float = 0.02, batch: int = 1_024) -> None:
        self._seconds_per_row = seconds / 1_024
        self._batch = batch
        name = f"batchinfer-versus-{os.getuid()}.lock"
        # The file keeps processes apart, the lock the threads of one, which share the file.
        self._file = os.open(Path(tempfile.gettempdir(), name), os.O_RDWR | os.O_CREAT, 0o600)
        self._lock = threading.Lock()

    def __call__(self, rows: Any) -> Any:
        """Take Arrow rows as a peer does, or arrays by name as batchinfer gives them."""
        if isinstance(rows, dict):
            return {"y": self._serve(rows["x"])}
        return super().__call__(rows)

    def encode(self, rows: Any) -> Array:
        """Return float32[rows, 384], a view."""
        column = rows["x"]
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH)

    def compute(self, encoded: Array) -> Array:
        """Keep the device busy."""
        starts = range(0, len(encoded), self._batch)
        return np.concatenate([self._serve(encoded[start : start + self._batch]) for start in starts])

    def _serve(self, x: Array) -> Array:
        y = 2 * x
        with self._lock:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            begin = time.time()
            time.sleep(self._seconds_per_row * len(x))
            stamp(begin, time.time(), len(x))
            fcntl.flock(self._file, fcntl.LOCK_UN)
        return y


opened: dict[str, Work] = {}
"""Models of this process, for the peers that use a process again and keep nothing themselves."""
SERVICE_S = {"device25": 0.04, "device51": 0.02}
KINDS: dict[str, type[Text | Images | Table]] = {"text": Text, "images": Images, "table": Table}


def open_work(name: str, folder: str, *, threads: int = 1, batch: int | None = None) -> Work:
    """Open a work by name; `batch` is rows, for text padded tokens, of one call of the model."""
    chosen = {} if batch is None else {"batch": batch}
    if name in SERVICE_S:
        return Device(SERVICE_S[name], **chosen)
    return KINDS[name](folder, threads=threads, **chosen)


def columns_of(name: str) -> tuple[str, ...]:
    """Return the columns that a work reads."""
    return Device.columns if name in SERVICE_S else KINDS[name].columns


def width_of(name: str) -> int | None:
    """Return how many numbers a row's result has; None for a plain number."""
    return {"text": WIDTH, "images": 16, "table": None}.get(name, WIDTH)
