"""Search the output of this job: `python jobs/text-embedding/search.py "read a zip file"`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.dataset as ds
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tokenizers import Tokenizer

HERE = Path(__file__).parent
SHOWN = 7
DEFAULT = "wait for several things to happen at the same time"


def embed(text: str) -> np.ndarray:
    """Embed one sentence with the job's model, by hand: float32[384], of length 1."""
    tokenizer = Tokenizer.from_file(str(HERE / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    ids = np.array([tokenizer.encode(text).ids], np.int64)
    session = onnxruntime.InferenceSession(HERE / "model" / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    mean = np.mean(session.run(None, inputs)[0][0], axis=0)
    return np.asarray(mean / np.linalg.norm(mean))


def main() -> None:
    """Print the docstrings that are nearest in meaning."""
    query = " ".join(sys.argv[1:]).strip() or DEFAULT
    # The output is an ordinary folder of Parquet files: any tool reads it.
    rows = ds.dataset(HERE / "output", format="parquet").to_table(filter=ds.field("embedding").is_valid())
    vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    scores = vectors @ embed(query)
    best = np.argsort(-scores)[:SHOWN]
    table = Table(box=None, padding=(0, 2, 1, 0), header_style="dim")
    table.add_column("score", style="bold green")
    table.add_column("where", style="cyan", overflow="fold", max_width=40)
    table.add_column("docstring")
    for score, row in zip(scores[best], rows.take(best).to_pylist(), strict=True):
        where = ".".join(filter(None, (row["module"], row["qualname"])))
        table.add_row(f"{score:.3f}", escape(where), escape(row["text"]))
    console = Console(highlight=False)
    console.print(f"\nNearest of {len(rows):,} docstrings to [bold]{escape(query)}[/bold]:\n")
    console.print(table)
    if len(sys.argv) == 1 or query == DEFAULT:
        console.print('Ask your own: [bold]make demo QUERY="read the lines of a compressed file"[/bold]')


if __name__ == "__main__":
    main()
