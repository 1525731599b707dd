"""`tokenize` gives the ids that the tokenizers library gives, row by row."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
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


def step(path: Path | str, **options: Any) -> Tokenize:
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
    for type_ in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        rows = pa.RecordBatch.from_pydict({"text": pa.array(["hello", "a"]).cast(type_)})
        made = step(tokenizer_file)
        made.output_schema(rows.schema)
        assert made.encode(rows).rows["input_ids"].to_pylist() == [[2, 4, 3], [2, 7, 3]]


def test_every_kind_of_null(tokenizer_file: Path) -> None:
    """A null fails its row in a dictionary and in the second of a pair as well; the first reason stays."""
    words = pa.array(["a", None]).dictionary_encode()
    rows = pa.RecordBatch.from_pydict({"text": words, "other": pa.array([None, None], pa.string())})
    encoded = step(tokenizer_file, pair_column="other").encode(rows)
    assert [encoded.failed[row].message.split(" (")[0] for row in (0, 1)] == [
        "column 'other' is null",
        "column 'text' is null",
    ]


def test_text_that_is_no_utf8(tokenizer_file: Path) -> None:
    """Files may hold any bytes as text: such a row fails, and its neighbours are encoded."""
    rows = pa.RecordBatch.from_pydict({"text": pa.array([b"hello", b"\xff", b"a"]).view(pa.string())})
    for nulls in ("error", "empty"):
        encoded = step(tokenizer_file, nulls=nulls).encode(rows)
        assert [(row, failure.code, failure.message) for row, failure in encoded.failed.items()] == [
            (1, "decode", "column 'text' is not valid UTF-8")
        ]
        assert encoded.rows["input_ids"].to_pylist()[::2] == [[2, 4, 3], [2, 7, 3]]


def test_without_special_tokens(tokenizer_file: Path) -> None:
    """All of max_length is for the text then."""
    rows = pa.RecordBatch.from_pydict({"text": ["a b c hello", ""]})
    encoded = step(tokenizer_file, add_special_tokens=False, max_length=2).encode(rows)
    assert encoded.rows["input_ids"].to_pylist() == [[WORDS.index("a"), WORDS.index("b")], []]


def test_no_rows(tokenizer_file: Path) -> None:
    """No rows in, no rows out, of the promised types; padding is told by the file's own token, and how long
    a row can be by the step."""
    made = step(tokenizer_file, max_length=9)
    none = pa.RecordBatch.from_pydict({"text": pa.array([], pa.string())})
    promised = made.output_schema(none.schema)
    assert made.encode(none).rows.schema.equals(promised, check_metadata=True)
    assert promised.field("input_ids").type == pa.list_(pa.int64())
    assert promised.field("input_ids").metadata == {b"pad": b"0", b"longest": b"9"}


def test_threads_share_a_tokenizer(tokenizer_file: Path) -> None:
    """One step serves several threads at once, from the first call on."""
    made = step(tokenizer_file)
    batches = [pa.RecordBatch.from_pydict({"text": ["hello " * n, "world"]}) for n in range(1, 20)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(made.encode, batches))
    for n, encoded in enumerate(found, start=1):
        assert encoded.rows["input_ids"].to_pylist() == [[2, *[4] * n, 3], [2, 5, 3]]


@pytest.mark.parametrize(
    ("type_", "hint"),
    [
        (pa.int64(), "make it text by a prompt step"),
        (pa.binary(), "decode the bytes by a python step"),
        (pa.large_binary(), "decode the bytes by a python step"),
        (pa.list_(pa.string()), "make it text by a prompt step"),
        (pa.dictionary(pa.int32(), pa.int64()), "make it text by a prompt step"),
    ],
)
def test_what_is_no_text(tokenizer_file: Path, type_: pa.DataType, hint: str) -> None:
    """A column that is no text is refused before any row."""
    with pytest.raises(ContractError, match=r"column 'text' has type .*, not string") as caught:
        step(tokenizer_file).output_schema(pa.schema([("text", type_)]))
    assert caught.value.hint == hint


@pytest.mark.parametrize(("max_length", "pair", "added"), [(1, None, 2), (2, None, 2), (3, "other", 3)])
def test_no_room_for_text(tokenizer_file: Path, max_length: int, pair: str | None, added: int) -> None:
    """A length that the special tokens fill is refused: the library would cut nothing, or everything."""
    schema = pa.schema([("text", pa.string()), ("other", pa.string())])
    with pytest.raises(ContractError) as caught:
        step(tokenizer_file, max_length=max_length, pair_column=pair).output_schema(schema)
    assert caught.value.message == (
        f"max_length is {max_length}, and the tokenizer adds {added} special tokens: no room is left for text"
    )
    assert caught.value.hint == f"set max_length above {added}, or add_special_tokens: false"


def test_no_tokenizer(tokenizer_file: Path, tmp_path: Path) -> None:
    """A tokenizer that is not there, or is none: the message says where it may be."""
    text = pa.schema([("text", pa.string())])
    (tmp_path / "bad.json").write_text("{}")
    cases = [
        (str(tmp_path / "nope.json"), "there is no tokenizer at", "a model's folder usually holds"),
        (str(tokenizer_file.parent), "there is no tokenizer at", f"its tokenizer is {tokenizer_file}"),
        ("s3://bucket/tokenizer.json", "there is no tokenizer at s3://bucket", "a tokenizer is a local file"),
        (str(tmp_path / "bad.json"), r"not a tokenizer\.json", f"at {tmp_path}"),
    ]
    for path, message, more in cases:
        with pytest.raises(ContractError, match=message) as caught:
            step(path).output_schema(text)
        assert more in str(caught.value)
