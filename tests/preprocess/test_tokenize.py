"""`tokenize` gives the ids that the tokenizers library gives, row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from batchinfer.errors import ContractError
from batchinfer.preprocess.tokenize_text import Tokenize, TokenizeOptions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "##s", "a", "b", "c", "##d", ",", "."]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a small WordPiece tokenizer that asks for padding and truncation of its own."""
    made = tokenizers.Tokenizer(
        models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    made.enable_padding(length=50)
    made.enable_truncation(4)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def step(path: Path, **options: Any) -> Tokenize:
    return Tokenize(
        TokenizeOptions.model_validate_json(json.dumps({"column": "text", "tokenizer": str(path), **options}))
    )


@given(st.lists(st.text(max_size=40), min_size=1, max_size=20), st.integers(3, 12))
def test_equals_the_library(tokenizer_file: Path, texts: list[str], max_length: int) -> None:
    """Any text, any script: the ids of a row are those of the library alone, cut at max_length."""
    plain = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    plain.no_padding()
    plain.enable_truncation(max_length)
    rows = pa.RecordBatch.from_pydict({"text": pa.array(texts, pa.string())})
    encoded = step(tokenizer_file, max_length=max_length).encode(rows)
    assert encoded.rows["input_ids"].to_pylist() == [plain.encode(text).ids for text in texts]
    assert [len(mask) for mask in encoded.rows["attention_mask"].to_pylist()] == [
        len(ids) for ids in encoded.rows["input_ids"].to_pylist()
    ]


def test_pairs_and_left_truncation(tokenizer_file: Path) -> None:
    """Two columns are joined as the tokenizer joins pairs; the side of the cut is the job's choice."""
    rows = pa.RecordBatch.from_pydict({"text": ["hello"], "other": ["a b c"]})
    encoded = step(tokenizer_file, pair_column="other").encode(rows)
    assert encoded.rows["token_type_ids"].to_pylist() == [[0, 0, 0, 1, 1, 1, 1]]
    rows = pa.RecordBatch.from_pydict({"text": ["a b c"]})
    cut = step(tokenizer_file, max_length=3, truncation_side="left", outputs=["input_ids"]).encode(rows)
    assert cut.rows["input_ids"].to_pylist() == [[2, WORDS.index("c"), 3]]
    assert "attention_mask" not in cut.rows.schema.names


def test_null_texts(tokenizer_file: Path) -> None:
    """A null text fails its row, unless nulls count as empty; its neighbours are encoded either way."""
    rows = pa.RecordBatch.from_pydict({"text": pa.array(["hello", None, "world"])})
    encoded = step(tokenizer_file).encode(rows)
    assert list(encoded.failed) == [1]
    assert encoded.failed[1].message.startswith("column 'text' is null")
    assert encoded.rows["input_ids"].to_pylist()[2] == [2, 5, 3]
    assert step(tokenizer_file, nulls="empty").encode(rows).failed == {}


def test_dictionary_and_large_strings(tokenizer_file: Path) -> None:
    """Text is text in every way that Arrow keeps it."""
    for type_ in (pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        rows = pa.RecordBatch.from_pydict({"text": pa.array(["hello", "a"]).cast(type_)})
        made = step(tokenizer_file)
        made.output_schema(rows.schema)
        assert made.encode(rows).rows["input_ids"].to_pylist() == [[2, 4, 3], [2, 7, 3]]


def test_refusals(tokenizer_file: Path, tmp_path: Path) -> None:
    """A column that is no text, a tokenizer that is not there or is none: refused before any row."""
    number = pa.schema([("text", pa.int64())])
    text = pa.schema([("text", pa.string())])
    with pytest.raises(ContractError, match="has type int64, not string"):
        step(tokenizer_file).output_schema(number)
    with pytest.raises(ContractError, match="there is no tokenizer at"):
        step(tmp_path / "nope.json").output_schema(text)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ContractError, match=r"not a tokenizer\.json"):
        step(tmp_path / "bad.json").output_schema(text)
