"""Search the embedded docstrings: `python search.py "how do I read a zip file"`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

HERE = Path(__file__).parent
SHOWN = 7


def embed(text: str) -> np.ndarray:
    """Embed one sentence with the model of the job, by hand: the same numbers."""
    tokenizer = Tokenizer.from_file(str(HERE / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    session = onnxruntime.InferenceSession(HERE / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    mean = session.run(None, inputs)[0][0].mean(axis=0)
    return mean / np.linalg.norm(mean)


def main() -> None:
    """Print the nearest docstrings."""
    query = " ".join(sys.argv[1:]) or "wait for several things to happen at the same time"
    table = ds.dataset(HERE / "output", format="parquet").to_table(
        columns=["package", "name", "text", "embedding"]
    )
    table = table.filter(ds.field("embedding").is_valid())
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    scores = vectors @ embed(query)
    best = np.argsort(-scores)[:SHOWN]
    shown = Table(title=f"nearest of {len(table):,} docstrings to “{query}”", title_justify="left")
    for column in ("score", "where", "docstring"):
        shown.add_column(column, overflow="fold")
    for row in table.take(best).to_pylist():
        at = float(np.dot(np.asarray(row["embedding"]), embed(query)))
        shown.add_row(f"{at:.3f}", f"{row['package']}: {row['name']}", row["text"][:140])
    Console().print(shown)


if __name__ == "__main__":
    main()
