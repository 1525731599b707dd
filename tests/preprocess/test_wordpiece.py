"""The quick way to tokenize gives the very ids that the tokenizers library gives, for any text."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from batchinfer.preprocess import wordpiece
from batchinfer.preprocess.tokenize_text import Tokenize, TokenizeOptions

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.ascii_letters + string.digits + string.punctuation + "éüßñçÅıİΣσςжЖ中文字あア한글ा्ー"
PIECES = ["the", "##ing", "##ed", "un", "##s", "hello", "world", "12", "##34"]
AWKWARD = [
    *SPECIAL,
    "[sep]",
    "[SEP",
    "[[SEP]]",
    "a[SEP]b",
    "\x00",
    "\x0b",
    "\x0c",
    "\x1f",
    "\x7f",
    "\u00a0",
    "\u00ad",
    "\u200b",
    "\u200d",
    "\u2028",
    "\u3000",
    "\ufeff",
    "\ufffd",
    "e\u0301",
    "\u0301",
    ".\u0301",
    "=\u0338",
    "≮",
    "\u037e",
    "\u1fef",
    "İstanbul",
    "ΟΔΟΣ",
    "“quoted”",
    "it’s",
    "naïve café",
    "中文字",
    "ひらがなカタカナ",
    "한국어",
    "हिन्दी",
    "ﷺ",
    "𝒜𝓑",
    "👩‍👩‍👧‍👦",
    "🇩🇪",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "é" * 101,
    "\t",
    "\r\n",
    "  ",
    "don't",
    "a.b,c!d",
    "$5.00",
    "unfriendly testing",
    "HELLO World",
]
TEXTS = st.lists(
    st.lists(
        st.sampled_from(AWKWARD)
        | st.text(max_size=12)
        | st.text(alphabet=string.ascii_letters + " .,-[]'", max_size=30)
        | st.text(alphabet=st.characters(categories=["M", "P", "S", "Z", "Cc", "Cf", "L"])),
        max_size=8,
    ).map("".join)
    | st.lists(st.sampled_from(AWKWARD), max_size=10).map(" ".join),
    max_size=12,
)


def build(folder: Path, name: str, **options: Any) -> Path:
    """Write a WordPiece tokenizer with letters and a few pieces for its vocabulary."""
    letters = sorted(set(LETTERS) - {" "})
    words = list(dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *PIECES]))
    vocabulary = {word: at for at, word in enumerate(words)}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(**options)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in SPECIAL])
    path = folder / f"{name}.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write tokenizers that differ in what they do to a text before they cut it."""
    folder = tmp_path_factory.mktemp("tokenizers")
    uncased: dict[str, Any] = {"lowercase": True}
    return [
        build(folder, "uncased", **uncased),
        build(folder, "cased", lowercase=False),
        build(folder, "accents", **uncased, strip_accents=False),
        build(folder, "stripped", lowercase=False, strip_accents=True),
        build(folder, "unspaced", **uncased, handle_chinese_chars=False),
        build(folder, "unclean", **uncased, clean_text=False),
    ]


def step(path: Path, **options: Any) -> Tokenize:
    return Tokenize(
        TokenizeOptions.model_validate_json(json.dumps({"column": "text", "tokenizer": str(path), **options}))
    )


def both(path: Path, column: pa.Array, **options: Any) -> tuple[Any, Any]:
    """Encode a column in both ways."""
    rows = pa.RecordBatch.from_arrays([column], names=["text"])
    found = [step(path, engine=engine, **options).encode(rows) for engine in ("auto", "library")]
    return found[0], found[1]


@given(
    texts=TEXTS,
    which=st.integers(0, 5),
    max_length=st.integers(3, 40),
    side=st.sampled_from(["right", "left"]),
    special=st.booleans(),
)
def test_any_text(
    files: Sequence[Path], texts: list[str], which: int, max_length: int, side: str, *, special: bool
) -> None:
    """Every script, control characters, accents, special tokens spelled out, words without end; cut from
    either side, with and without special tokens."""
    options = {"max_length": max_length, "truncation_side": side, "add_special_tokens": special}
    quick, library = both(files[which], pa.array(texts, pa.string()), **options)
    assert quick.rows.equals(library.rows)
    assert quick.rows.schema.field("input_ids").metadata == library.rows.schema.field("input_ids").metadata


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["no", "hello [SEP] world", "", "café"]).slice(1),
        pa.array(["hello", "world"], pa.large_string()),
        pa.array(["hello", "world"], pa.string_view()),
        pa.array(["hello", "world", "hello"]).dictionary_encode(),
        pa.array([], pa.string()),
        pa.array(["", "", ""]),
        pa.array(["hello " * 10_000, "y" * 10_000]),
    ],
    ids=lambda column: str(column.type),
)
def test_any_column(files: Sequence[Path], column: pa.Array) -> None:
    """Slices, dictionaries, views, nothing at all, and long texts."""
    quick, library = both(files[0], column)
    assert quick.rows.equals(library.rows)


def test_nulls_and_bytes_that_are_no_text(files: Sequence[Path]) -> None:
    """A null fails its row, as does what is no UTF-8, and the neighbours have their ids."""
    broken = pa.array([b"hello", b"\xff", None, b"world"], pa.binary()).view(pa.string())
    for column in (pa.array(["hello", None, "world"]), broken):
        for nulls in ("error", "empty"):
            quick, library = both(files[0], column, nulls=nulls)
            assert quick.rows.equals(library.rows)
            assert quick.failed == library.failed


def test_more_words_than_are_kept(files: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Words are forgotten when there are too many, in the middle of it, by several threads at once."""
    monkeypatch.setattr(wordpiece, "_MOST_WORDS", 50)
    made = step(files[0])
    batches = [
        pa.RecordBatch.from_pydict({"text": [f"w{at}{row} hello {at * row}" for row in range(30)]})
        for at in range(40)
    ]
    wanted = [step(files[0], engine="library").encode(rows).rows for rows in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            found = list(pool.map(lambda rows: made.encode(rows).rows, batches))
            assert all(one.equals(other) for one, other in zip(found, wanted, strict=True))


def test_other_tokenizers_are_left_to_the_library(tmp_path: Path, files: Sequence[Path]) -> None:
    """Where a text is cut in another way, or an added token could be anything, nothing is done quickly."""
    bpe = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.save(str(tmp_path / "bpe.json"))
    loose = tokenizers.Tokenizer.from_file(str(files[0]))
    loose.add_tokens([AddedToken("hello wor", normalized=True)])
    loose.save(str(tmp_path / "loose.json"))
    typed = tokenizers.Tokenizer.from_file(str(files[0]))
    typed.post_processor = processors.TemplateProcessing(
        single="[CLS] $A:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    typed.save(str(tmp_path / "typed.json"))
    for name in ("bpe", "loose", "typed"):
        quick, library = both(tmp_path / f"{name}.json", pa.array(["ab ba", "hello world", "[SEP]"]))
        assert quick.rows.equals(library.rows)
