"""What the jobs read: pictures, pixels, texts and numbers as Parquet, model folders, and a tokenizer."""

from __future__ import annotations

import ast
import io
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from gpu_checks.bench import Bench
from gpu_checks.works import ENCODERS, RESNET, SIDES, VOCABULARY, write_flop

HERE = Path(__file__).parent
MIN_CHARS, MAX_CHARS = 30, 400
_PACKAGES = ("numpy", "torch", "transformers", "pyarrow")
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_SEED = 11
ROWS = {
    "texts-few": (512, 80),
    "texts": (600_000, 160),
    "pixels-few": (256, 16),
    "pixels": (4_096, 32),
    "jpeg": (1_280, 24),
    "table": (4_000_000, 8_000),
}
"""Rows that are made for each folder: of a run, and of a tiny one."""

_SAMPLE = 2_000
"""Texts whose tokens are counted."""

_TRAINED = 20_000


def prepare(bench: Bench) -> None:
    """Make everything: the longest first."""
    shutil.copy(HERE / "networks.py", bench.folder)
    with ThreadPoolExecutor(1) as beside:
        pictures = beside.submit(_pictures, bench)
        _pixels(bench)
        _table(bench)
        found = paragraphs(600 if bench.tiny else 12_000)
        _tokenizer(bench, found)
        texts = _texts(bench, found)
        _encoders(bench)
        write_flop(bench, texts[:_SAMPLE], _resnet(bench))
        pictures.result()
    names = sorted(path.name for path in bench.folder.iterdir() if path.is_dir())
    bench.note("bytes", {name: _size(bench.folder / name) for name in names})


def paragraphs(most: int) -> list[str]:
    """Return first paragraphs of docstrings, each once: of the standard library, then of packages."""
    site = Path(sysconfig.get_path("purelib"))
    folders = [Path(sysconfig.get_path("stdlib")), *(site / name for name in _PACKAGES)]
    found: dict[str, None] = {}
    for folder in folders:
        for path in _sources(folder):
            found |= dict.fromkeys(_docstrings(path))
            if len(found) >= most:
                return list(found)[:most]
    return list(found)


def _sources(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if "packages" not in name and "test" not in name)
        yield from (Path(parent, name) for name in sorted(files) if name.endswith(".py"))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split("\n\n", 1)[0].split())
            if MIN_CHARS <= len(text) <= MAX_CHARS:
                yield text


def _texts(bench: Bench, found: list[str]) -> list[str]:
    """Write texts of one to a dozen paragraphs, with a long tail: few to compare, and many to be fast with.
    Return the many."""
    draw, texts = np.random.default_rng(_SEED), []
    for name in ("texts-few", "texts"):
        rows = ROWS[name][bench.tiny]
        counts = np.minimum(draw.geometric(0.4, rows), 12)
        chosen = draw.integers(0, len(found), int(counts.sum()))
        ends = np.cumsum(counts)
        # Its number makes a text one of its kind.
        texts = [
            f"{at} " + " ".join(found[index] for index in chosen[end - count : end])
            for at, (end, count) in enumerate(zip(ends.tolist(), counts.tolist(), strict=True))
        ]
        _write(bench.folder / name, {"text": pa.array(texts, pa.large_string())}, shards=4)
    return texts


def _tokenizer(bench: Bench, found: list[str]) -> None:
    """Train a WordPiece tokenizer as BERT has it, on the very texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 - a token of words
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    size = VOCABULARY // 30 if bench.tiny else VOCABULARY
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=_SPECIAL, show_progress=False)
    made.train_from_iterator(found[:_TRAINED], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    made.save(str(bench.folder / "tokenizer.json"))
    bench.note("vocabulary", made.get_vocab_size())


def _encoders(bench: Bench) -> None:
    """Write model folders of BERT encoders with random weights."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, shapes in ENCODERS.items():
        shape = shapes[bench.tiny]
        torch.manual_seed(7)
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.width,
            max_position_embeddings=512,
            # Larger than usual, so that rows differ as those of a trained model do.
            initializer_range=0.05,
        )
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(bench.folder / name)


def _resnet(bench: Bench) -> Any:
    """Write the weights of the convolutional network, and return it."""
    from safetensors.torch import save_file

    sys.path.insert(0, str(bench.folder))
    import networks

    network = networks.resnet(**RESNET[bench.tiny])
    save_file(network.state_dict(), bench.folder / "resnet.safetensors")
    return network


def _pixels(bench: Bench) -> None:
    """Write images as raw bytes of one length."""
    side = SIDES[bench.tiny]
    for name in ("pixels-few", "pixels"):
        rows = ROWS[name][bench.tiny]
        draw = np.random.default_rng(_SEED)
        coarse = draw.integers(0, 256, (rows, 3, side // 16, side // 16), np.uint8)
        images = coarse.repeat(16, 2).repeat(16, 3)
        images += draw.integers(0, 16, images.shape, np.uint8)
        length = 3 * side * side
        column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(length), rows, [None, pa.py_buffer(images)])
        _write(bench.folder / name, {"pixels": column}, shards=2, row_group=256)


def _pictures(bench: Bench) -> None:
    """Write JPEGs of 320 to 800 pixels a side."""
    workers = max(1, len(os.sched_getaffinity(0)) - 2)
    with ThreadPoolExecutor(workers) as pool:
        data = list(pool.map(picture, range(ROWS["jpeg"][bench.tiny])))
    _write(bench.folder / "jpeg", {"jpeg": pa.array(data, pa.binary())}, shards=1)


def picture(seed: int) -> bytes:
    """Return a JPEG with what photos have: large areas, shapes in them, texture, and some noise."""
    from PIL import Image

    draw = np.random.default_rng(seed)
    width, height = (int(side) for side in draw.integers(320, 801, 2))
    whole = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 0.5), (12, 0.3), (48, 0.2)):
        noise = draw.integers(0, 256, (cells, cells, 3), np.uint8)
        whole += weight * np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    whole += draw.normal(0, 4, whole.shape).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(whole.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=87)
    return file.getvalue()


def _table(bench: Bench) -> None:
    """Write rows of 32 numbers."""
    numbers = np.random.default_rng(_SEED).standard_normal(ROWS["table"][bench.tiny] * 32, np.float32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 32)
    _write(bench.folder / "table", {"x": column}, shards=4, row_group=65_536)


def _write(folder: Path, columns: dict[str, Any], *, shards: int, row_group: int = 8192) -> None:
    """Write columns as so many files of about as many rows."""
    folder.mkdir()
    table = pa.table(columns)
    size = -(-len(table) // shards)
    for at in range(shards):
        piece = table.slice(at * size, size)
        plain = [field.name for field in table.schema if pa.types.is_fixed_size_list(field.type)]
        pq.write_table(
            piece,
            folder / f"{at:03}.parquet",
            row_group_size=row_group,
            use_dictionary=False,
            compression="none" if plain else "snappy",
        )


def linked(folder: Path, source: str, times: int) -> str:
    """Return the name of a folder with each file of another under so many names."""
    target = folder / f"{source}-{times}"
    if not target.exists():
        target.mkdir()
        for path in sorted((folder / source).iterdir()):
            for number in range(times):
                (target / f"{number:03}-{path.name}").hardlink_to(path)
    return target.name


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
