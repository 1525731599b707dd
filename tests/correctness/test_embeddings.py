"""Sentence embeddings, held against sentence-transformers' own `encode` for the same model folder."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.correctness.conftest import ROOT, Prepare, Run, Workshop, apart, matrix

TEXTS = 10_000
CUTS = (6, 8, 10, 12, 14, 16, 18, 20, 30, 100)
"""Characters of a text. Real texts, most of them short: the test is about every row, not about long hours."""
TOGETHER = 50
"""Texts of one length in a row: as many as a batch of texts holds, so that little of it is padding."""
LONGEST = 256
"""Tokens of a text in sentence_bert_config.json. The tokenizer.json of the same folder says 128."""
CLOSE = 1e-5
LOG = logging.getLogger(__name__)

Encode = Any


@pytest.fixture(scope="module")
def jobs_path() -> Iterator[None]:
    """Let the examples' modules be imported by their names."""
    sys.path.insert(0, str(ROOT / "jobs"))
    yield
    sys.path.remove(str(ROOT / "jobs"))


@pytest.fixture(scope="module")
def model(jobs_path: None) -> Path:
    """The sentence-transformers folder of MiniLM."""
    from minilm import model_folder  # type: ignore[import-not-found]

    try:
        return Path(model_folder())
    except SystemExit as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encode(model: Path) -> Encode:
    """sentence-transformers' own `encode`: texts to float32[texts, 384], of length 1."""
    import torch
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    assert theirs.max_seq_length == LONGEST

    def encode(texts: list[str], *, max_tokens: int = LONGEST) -> np.ndarray[Any, Any]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        theirs.max_seq_length = max_tokens
        try:
            return np.asarray(theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False))
        finally:
            theirs.max_seq_length = LONGEST
            torch.set_num_threads(threads)

    return encode


@pytest.fixture(scope="module")
def texts(workshop: Workshop, jobs_path: None) -> pa.Table:
    """10,000 different docstrings or beginnings of docstrings, numbered."""
    return pq.read_table(workshop.once("texts.parquet", write_texts))


@pytest.fixture(scope="module")
def wanted(workshop: Workshop, texts: pa.Table, encode: Encode) -> np.ndarray[Any, Any]:
    """Their embeddings by sentence-transformers."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, encode(texts["text"].to_pylist()))

    return np.asarray(np.load(workshop.once("wanted.npy", write)))


@pytest.fixture
def onnx(prepare: Prepare) -> dict[str, Any]:
    """A job's sections for the ONNX form of the model: tokenize, run, pool."""
    folder = prepare("text-embedding") / "model"
    tokenize = {"column": "text", "tokenizer": str(folder / "tokenizer.json"), "max_length": LONGEST}
    return {
        "preprocess": [{"tokenize": tokenize}],
        "model": {"path": str(folder / "model.onnx")},
        "batching": {"by": "tokens", "size": 1024},
        "postprocess": [{"mean_pool": {"from": "last_hidden_state", "to": "embedding", "normalize": True}}],
    }


@pytest.fixture
def torch_texts(model: Path) -> dict[str, Any]:
    """A job's sections for the folder as it is, which then says everything itself."""
    return {
        "model": {"backend": "transformers", "path": str(model), "task": "embedding"},
        "batching": {"size": TOGETHER},
    }


@pytest.fixture
def torch_tokens(model: Path) -> dict[str, Any]:
    """The same, with the tokens made and sorted by length beforehand."""
    tokenize = {"column": "text", "tokenizer": str(model / "tokenizer.json"), "max_length": LONGEST}
    return {
        "preprocess": [{"tokenize": tokenize}],
        "model": {
            "backend": "transformers",
            "path": str(model),
            "task": "embedding",
            "inputs_are": "tokens",
        },
        "batching": {"by": "tokens", "size": 1024},
    }


@pytest.fixture
def torch_packed(torch_tokens: dict[str, Any]) -> dict[str, Any]:
    """The same, one text after the other in one sequence."""
    return torch_tokens | {"batching": {"size": "16KiB", "packed": True}}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["onnx", "torch_texts"])
def test_ten_thousand_texts_are_embedded_as_by_sentence_transformers(
    way: str,
    request: pytest.FixtureRequest,
    *,
    run: Run,
    texts: pa.Table,
    wanted: np.ndarray[Any, Any],
    tmp_path: Path,
) -> None:
    """Each of 10,000 texts gets the vector that sentence-transformers gives it, to 1e-5, in its own row."""
    found = run(job(tmp_path, texts, request.getfixturevalue(way)))
    assert found.select(["number", "text"]).equals(texts)
    assert found["_error"].null_count == TEXTS
    compare(matrix(found["embedding"]), wanted)


@pytest.mark.parametrize("way", ["onnx", "torch_texts", "torch_tokens", "torch_packed"])
def test_long_texts_are_cut_where_sentence_transformers_cuts_them(
    way: str,
    request: pytest.FixtureRequest,
    *,
    run: Run,
    encode: Encode,
    tmp_path: Path,
) -> None:
    """A text of 254 words fills 256 tokens, and what comes after them changes nothing; short, empty and
    foreign texts in the same batch are not disturbed."""
    words = ["river", "stone", "cloud", "lamp"]
    sizes = [1, 126, 127, 253, 254, 255, 300, 700]
    rows = [" ".join(words[at % 4] for at in range(size)) for size in sizes]
    rows += [
        rows[4] + " entirely different ending",
        "",
        " ",
        "Grüße aus Köln 🙂",
        "日本語の文",
        "UPPER lower",
    ]
    table = pa.table({"number": range(len(rows)), "text": rows})
    found = run(job(tmp_path, table, request.getfixturevalue(way)))

    vectors = matrix(found["embedding"])
    compare(vectors, encode(rows))
    np.testing.assert_allclose(vectors[8], vectors[4], atol=CLOSE)
    # The example can tell: one token less, and 128 as the tokenizer's file says, give other vectors.
    for shorter in (LONGEST - 1, 128):
        assert apart(vectors[4:8], encode(rows[4:8], max_tokens=shorter)) > 100 * CLOSE


def job(folder: Path, table: pa.Table, sections: dict[str, Any]) -> dict[str, Any]:
    """Return a job over a table, cut into shards and units that divide nothing evenly."""
    (folder / "in").mkdir()
    half = len(table) * 5 // 8
    pq.write_table(table.slice(0, half), folder / "in" / "a.parquet", row_group_size=1_700)
    pq.write_table(table.slice(half), folder / "in" / "b.parquet", row_group_size=900)
    return {
        "job": "embeddings",
        "input": {"path": str(folder / "in")},
        **sections,
        "output": {"path": "overridden", "carry": ["number", "text"]},
        "checkpoint": {"unit_rows": 2_350},
    }


def compare(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> None:
    """Hold two sets of unit vectors against each other: each number, and each row's cosine."""
    assert found.dtype == np.float32
    far = apart(found, wanted)
    exact, other = found.astype(np.float64), wanted.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(other, axis=1)
    cosine = float(((exact * other).sum(axis=1) / lengths).min())
    LOG.info("max abs %.2e, 1 - cosine %.2e", far, 1 - cosine)
    assert far < CLOSE
    assert cosine > 1 - CLOSE
    np.testing.assert_allclose(np.linalg.norm(exact, axis=1), 1, atol=CLOSE)


def write_texts(path: Path) -> None:
    """Write the beginnings of 10,000 docstrings; one that is there already gets a number."""
    import docstrings  # type: ignore[import-not-found]

    rows: dict[str, None] = {}
    for docstring in itertools.chain.from_iterable(docstrings.collect().values()):
        cut = docstring.text[: CUTS[len(rows) // TOGETHER % len(CUTS)]]
        rows[f"{cut} {len(rows)}" if cut in rows else cut] = None
        if len(rows) == TEXTS:
            break
    pq.write_table(pa.table({"number": range(len(rows)), "text": list(rows)}), path)
