"""The data and models of the comparison, seeded and written once: `python data.py WORK ROWS FOLDER`

FOLDER gets `in/*.parquet` (a column `id` from 0 to ROWS - 1 and the work's own), the model, and
`expected.npy`: for each id the sum of its result over fixed weights, computed row by row where padding
could play a part. It is renamed into place when it is complete.
"""

from __future__ import annotations

import io
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import works

HERE = Path(__file__).parent
SHARDS = 4
ROW_GROUP_BYTES = 16 << 20
WORDNET = Path("/usr/share/wordnet")
PICTURES = 400  # different ones; rows draw from them
FLOAT, INT64, UINT8 = 1, 7, 2  # as ONNX numbers its types


def main() -> None:
    """Make what is not there yet."""
    work, rows, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if folder.exists():
        return
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "in").mkdir(parents=True)
    MODELS[work](partial)
    write_shards(partial / "in", rows, COLUMNS[work](rows))
    np.save(partial / "expected.npy", expected(work, partial, rows))
    partial.rename(folder)


def write_shards(folder: Path, rows: int, columns: Callable[[int, int], dict[str, Any]]) -> None:
    """Write rows as several files, in row groups of about 16 MiB."""
    borders = np.linspace(0, rows, SHARDS + 1).astype(int)
    for at, (start, stop) in enumerate(itertools.pairwise(borders)):
        table = pa.table({"id": np.arange(start, stop), **columns(start, stop)})
        groups = max(1, table.nbytes // ROW_GROUP_BYTES)
        pq.write_table(
            table, folder / f"{at}.parquet", row_group_size=-(-len(table) // groups), use_dictionary=False
        )


def expected(work: str, folder: Path, rows: int) -> np.ndarray[Any, Any]:
    """Compute every row's checksum in the plainest way."""
    model = works.open_work(work, str(folder), threads=2, batch=1 if work == "text" else 256)
    if isinstance(model, works.Device):
        model = works.Device(seconds=0)
    sums = np.empty(rows)
    for path in sorted((folder / "in").glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(8192):
            result = model(batch)
            sums[result["id"].to_numpy()] = works.checksums(result["y"])
    return sums


def texts(rows: int) -> Callable[[int, int], dict[str, Any]]:
    """Join WordNet's glosses to texts whose lengths have a long tail: 5 to 256 tokens, 40 in the median."""
    if not WORDNET.is_dir():
        raise SystemExit("the texts come with Debian's package wordnet-base: apt-get install wordnet-base")
    words = [word for gloss in _glosses() for word in gloss.split()]
    rng = np.random.default_rng(11)
    lengths = np.clip(np.exp(rng.normal(3.4, 0.8, rows)), 4, 190).astype(int)
    starts = rng.integers(0, len(words) - 200, rows)

    def columns(start: int, stop: int) -> dict[str, Any]:
        pieces = zip(starts[start:stop], lengths[start:stop], strict=True)
        return {"text": [" ".join(words[at : at + length]) for at, length in pieces]}

    return columns


def _glosses() -> list[str]:
    """Return the glosses of all four parts of speech, in a seeded order."""
    found = [
        line.split("|", 1)[1].strip()
        for name in ("noun", "verb", "adj", "adv")
        for line in (WORDNET / f"data.{name}").read_text().splitlines()
        if "|" in line
    ]
    np.random.default_rng(10).shuffle(found)
    return found


def pictures(rows: int) -> Callable[[int, int], dict[str, Any]]:
    """Draw JPEGs of 320 to 800 pixels a side, about as many bytes a pixel as a photograph has."""
    rng = np.random.default_rng(12)
    files = [_jpeg(rng) for _ in range(min(PICTURES, rows))]
    drawn = rng.integers(0, len(files), rows)
    return lambda start, stop: {"jpeg": pa.array([files[at] for at in drawn[start:stop]], pa.binary())}


def _jpeg(rng: np.random.Generator) -> bytes:
    from PIL import Image

    height, width = rng.integers(320, 801, 2)
    image = np.zeros((height, width, 3), np.float32)
    # Detail on several scales, the finer the fainter, as in a picture of something.
    for cells, strength in ((4, 90), (16, 45), (64, 22), (160, 12)):
        field = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        planes = [
            Image.fromarray(field[..., c]).resize((int(width), int(height)), Image.Resampling.BICUBIC)
            for c in range(3)
        ]
        image += np.stack([np.asarray(plane) for plane in planes], -1)
    image += rng.normal(0, 4, (height, width, 1))
    out = io.BytesIO()
    Image.fromarray(np.clip(image + 120, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=85)
    return out.getvalue()


def numbers(rows: int) -> Callable[[int, int], dict[str, Any]]:
    """Draw 32 columns of normal float32."""
    del rows

    def columns(start: int, stop: int) -> dict[str, Any]:
        rng = np.random.default_rng(start)
        return {name: rng.standard_normal(stop - start, np.float32) for name in works.FEATURES}

    return columns


def vectors(rows: int) -> Callable[[int, int], dict[str, Any]]:
    """Draw one column of 384 float32."""
    del rows

    def columns(start: int, stop: int) -> dict[str, Any]:
        flat = np.random.default_rng(start).standard_normal((stop - start) * works.WIDTH, np.float32)
        return {"x": pa.FixedSizeListArray.from_arrays(flat, works.WIDTH)}

    return columns


def save_minilm(folder: Path) -> None:
    """Export MiniLM with its tokenizer, and keep the folder that sentence-transformers reads."""
    sys.path.insert(0, str(HERE.parents[1] / "jobs"))
    import minilm

    minilm.export(folder / "model")
    copied = folder / "sentence-transformers"
    shutil.copytree(minilm.model_folder(), copied)
    # Where sentence-transformers looks for it; else it would export the model anew, at every start.
    (copied / "onnx").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.copy(folder / "model" / name, copied / "onnx" / name)


def save_network(folder: Path) -> None:
    """Write a convolutional network of four layers: uint8[rows, 224, 224, 3] to float32[rows, 16]."""
    rng = np.random.default_rng(13)
    nodes = [
        ("Cast", ["pixels"], "floats", {"to": FLOAT}),
        ("Mul", ["floats", "scale"], "scaled", {}),
        ("Transpose", ["scaled"], "h0", {"perm": [0, 3, 1, 2]}),
    ]
    weights = {"scale": np.float32(1 / 255)}
    sizes = (3, 16, 32, 64, 128)
    for at, (before, after) in enumerate(itertools.pairwise(sizes)):
        kernel = rng.standard_normal((after, before, 3, 3)) * np.sqrt(2 / (9 * before))
        weights[f"w{at}"] = kernel.astype(np.float32)
        conv = {"strides": [2, 2], "pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
        nodes.append(("Conv", [f"h{at}", f"w{at}"], f"c{at}", conv))
        nodes.append(("Relu", [f"c{at}"], f"h{at + 1}", {}))
    weights["head"] = (rng.standard_normal((128, 16)) / 11).astype(np.float32)
    nodes += [
        ("GlobalAveragePool", ["h4"], "pooled", {}),
        ("Flatten", ["pooled"], "flat", {}),
        ("MatMul", ["flat", "head"], "y", {}),
    ]
    _save(folder / "model.onnx", nodes, weights, ("pixels", UINT8, ["rows", 224, 224, 3]), ["rows", 16])


def save_mlp(folder: Path) -> None:
    """Write a network of three layers: float32[rows, 32] to float32[rows, 1]."""
    rng = np.random.default_rng(14)
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = []
    weights = {}
    for at, (before, after) in enumerate(((32, 128), (128, 64), (64, 1))):
        weights[f"w{at}"] = (rng.standard_normal((before, after)) / np.sqrt(before)).astype(np.float32)
        weights[f"b{at}"] = rng.standard_normal(after).astype(np.float32)
        last = at == 2  # noqa: PLR2004 - of three
        nodes.append(
            ("Gemm", [f"h{at}" if at else "features", f"w{at}", f"b{at}"], "y" if last else f"g{at}", {})
        )
        if not last:
            nodes.append(("Relu", [f"g{at}"], f"h{at + 1}", {}))
    _save(folder / "model.onnx", nodes, weights, ("features", FLOAT, ["rows", 32]), ["rows", 1])


def _save(path: Path, nodes: Any, weights: Any, takes: tuple[str, int, list[Any]], gives: list[Any]) -> None:
    from onnx import checker, helper, numpy_helper, save

    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **keys) for kind, inputs, output, keys in nodes],
        path.parent.name,
        [helper.make_tensor_value_info(*takes)],
        [helper.make_tensor_value_info("y", FLOAT, gives)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    checker.check_model(model)
    save(model, path)


COLUMNS = {"text": texts, "images": pictures, "table": numbers, "device25": vectors, "device51": vectors}
MODELS: dict[str, Callable[[Path], None]] = {
    "text": save_minilm,
    "images": save_network,
    "table": save_mlp,
    "device25": lambda _: None,
    "device51": lambda _: None,
}


if __name__ == "__main__":
    main()
