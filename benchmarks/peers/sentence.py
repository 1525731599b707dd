"""sentence-transformers: the whole column encoded at once, by one model or by a pool of processes.

Settings: `workers` (1: no pool), `backend` (torch or onnx), `batch` rows of a call, `threads` of the model.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import works
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Run the work."""
    order = works.order()
    given = order.settings
    torch.set_num_threads(given["threads"])
    model = SentenceTransformer(
        f"{order.folder}/sentence-transformers", device="cpu", backend=given["backend"]
    )
    model.max_seq_length = works.MAX_TOKENS
    rows = pa.concat_tables(pq.read_table(path, columns=["id", "text"]) for path in order.shards)
    texts = rows["text"].to_pylist()
    begin = time.time()
    keys = {"batch_size": given["batch"], "show_progress_bar": False, "normalize_embeddings": True}
    if given["workers"] > 1:
        y = model.encode(texts, device=["cpu"] * given["workers"], **keys)
    else:
        y = model.encode(texts, **keys)
    works.stamp(begin, time.time(), len(texts))
    pq.write_table(works.result(rows["id"], y), f"{order.out}/0.parquet", use_dictionary=False)


if __name__ == "__main__":
    main()
