"""How much of what a device computes is padding, by each way to batch? `python benchmarks/padding.py`

Padding efficiency is real tokens over all tokens that are computed, made-up rows included. The texts are
real: the docstrings of the standard library and of installed packages as they are, and texts of 5 to 256
tokens with a long tail that are put together from their sentences. Batches are cut by the loader itself, in
the windows that a run would have. *Shapes* are those that a compiled model meets.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenize_texts import step, texts

from batchinfer.data import Block, EncodedChunk, Packing, Shard, Unit, UnitEnd
from batchinfer.loader.batches import BatchPolicy, Binding
from batchinfer.loader.shapes import bucket_lengths
from batchinfer.loader.windows import WindowPolicy, batches_of

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "jobs"))
CHUNK, LONGEST = 4096, 256
BINDINGS = (Binding("input_ids", "input_ids", "int64"), Binding("attention_mask", "attention_mask", "int64"))
PACKING = Packing(values=("input_ids",), ones=("attention_mask",))
SIZES = {512: 4096, 16_384: 32_768}
"""Tokens of a batch, and rows of a window: what `auto` means on a CPU and on a GPU."""


def docstring_texts(count: int) -> pa.Array:
    """Return docstrings as they are, in the order in which they were found."""
    import docstrings

    found = [docstring.text for group in docstrings.collect().values() for docstring in group]
    return pa.array(found[:count], pa.large_string())


def chunks(column: pa.Array) -> list[EncodedChunk | UnitEnd]:
    """Tokenize texts as a job does, into one unit."""
    made, total = step("auto"), len(column)
    shard = Shard(
        index=0, uri="t", key="t", size_bytes=0, version="", blocks=(Block(num_rows=total, num_bytes=0),)
    )
    unit = Unit(index=0, shard=shard, start=0, stop=total)
    found: list[EncodedChunk | UnitEnd] = []
    for at in range(0, total, CHUNK):
        rows = pa.RecordBatch.from_arrays([column.slice(at, CHUNK)], names=["text"])
        ids = made.encode(rows).rows.select(["input_ids", "attention_mask"])
        good = np.arange(len(rows), dtype=np.int64)
        found.append(EncodedChunk(unit=unit, carried=rows, tensors=ids, good=good, failed={}))
    return [*found, UnitEnd(unit)]


def ways(size: int) -> Iterator[tuple[str, BatchPolicy, int]]:
    """Yield each way to batch, and the rows of its windows."""
    tokens: dict[str, Any] = {"size": size, "by": "tokens", "bindings": BINDINGS}
    window = SIZES[size]
    yield "unsorted, 64 rows", BatchPolicy(size=64, by="rows", bindings=BINDINGS), 64
    yield "sorted windows", BatchPolicy(**tokens), window
    lengths = bucket_lengths(LONGEST)
    yield "sorted windows, 32 buckets", BatchPolicy(**tokens, fixed=True, lengths=lengths), window
    yield "packed", BatchPolicy(**tokens, packing=PACKING), window
    if size > LONGEST * 4:
        yield "packed, one shape", BatchPolicy(**tokens, fixed=True, packing=PACKING), window


def measured(
    stream: list[EncodedChunk | UnitEnd], policy: BatchPolicy, window: int, rows: int
) -> dict[str, Any]:
    """Cut all batches; return what they hold. Ends the program where rows are lost."""
    real = padded = seen = count = 0
    shapes, began = set(), time.perf_counter()
    for batch in batches_of(stream, WindowPolicy(window, 1 << 40), policy):
        if len(batch.rows):
            ids = np.asarray(batch.tensors["input_ids"])
            real, padded = real + batch.real_tokens, padded + ids.size
            seen, count = seen + len(batch.rows), count + 1
            ends = batch.tensors.get("cu_seqlens")
            shapes.add((ids.shape, None if ends is None else len(ends)))
    seconds = time.perf_counter() - began
    if seen != rows or real > padded:
        raise SystemExit(f"{seen} rows came out of {rows}, with {real} tokens of {padded}")
    return {
        "efficiency": round(real / padded, 4),
        "shapes": len(shapes),
        "batches": count,
        "tokens_per_second": round(real / seconds),
    }


def main() -> None:
    """Cut, print, and write the result."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--tiny", action="store_true", help="few texts, and no result file")
    parser.add_argument("--texts", type=int, default=200_000, help="texts that are put together")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "padding.json")
    asked = parser.parse_args()
    count = 3000 if asked.tiny else asked.texts
    corpora = {"texts of sentences": texts(count, odd=0.0, seed=0)}
    if not asked.tiny:
        corpora["docstrings"] = docstring_texts(count)
    found: dict[str, Any] = {}
    for name, column in corpora.items():
        stream = chunks(column)
        for size in SIZES:
            for way, policy, window in ways(size):
                figures = measured(stream, policy, window, len(column))
                found.setdefault(name, {"rows": len(column)}).setdefault(str(size), {})[way] = figures
                print(
                    f"{name:18}  {size:6} tokens  {way:26}  efficiency {figures['efficiency']:6.1%}"
                    f"  {figures['shapes']:5} shapes  {figures['batches']:6} batches"
                    f"  {figures['tokens_per_second'] / 1e6:6.1f} M tokens/s",
                    flush=True,
                )
    if not asked.tiny:
        result = {
            "command": " ".join(["python", "benchmarks/padding.py", *sys.argv[1:]]),
            "python": platform.python_version(),
            "versions": {
                name: importlib.metadata.version(name) for name in ("pyarrow", "numpy", "tokenizers")
            },
            **found,
        }
        asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
