"""How fast are texts tokenized, against the tokenizers library? `python benchmarks/tokenize_texts.py`

One core each, in alternating rounds, on real prose: sentences of docstrings, put together at random to
texts of 5 to 256 tokens with a long tail, by MiniLM's tokenizer. *cold* is the first time that a text's
words are seen, *warm* the next ones.

    python benchmarks/tokenize_texts.py --equal 1000000

compares the ids of so many texts instead, odd ones of every kind among them, and fails at the first
difference.
"""

from __future__ import annotations

import os

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import functools
import importlib.metadata
import json
import platform
import random
import statistics
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa

from batchinfer.preprocess.tokenize_text import Tokenize, TokenizeOptions

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "jobs"))
CHUNK = 4096
ODD = [
    "[SEP]",
    "[cls]",
    "a[MASK]b",
    "\x00",
    "\x0b",
    "\x7f",
    "\u00a0",
    "\u200b",
    "\ufffd",
    ".\u0301",
    "=\u0338",
    "\u037e",
    "İ",
    "ΟΔΟΣ",
    "“quoted”",
    "naïve",
    "中文字",
    "한국어",
    "हिन्दी",
    "👩‍👩‍👧‍👦",
    "x" * 101,
    "y" * 10_000,
    "\t\r\n",
]


@functools.cache
def sentences() -> list[str]:
    """Return real sentences."""
    import docstrings

    everything = (found.text for group in docstrings.collect().values() for found in group)
    found = {" ".join(part.split()) for text in everything for part in text.split(". ")}
    return sorted(part for part in found if len(part) > 10)  # noqa: PLR2004 - a sentence


def texts(count: int, *, odd: float, seed: int) -> pa.Array:
    """Put sentences together to texts whose number of words is long-tailed; `odd` is the share with odd
    ones among them."""
    draw, parts = random.Random(seed), sentences()
    codes = (chr(code) for code in range(32, 0x2FA20))
    letters = [letter for letter in codes if unicodedata.category(letter) not in {"Cs", "Cn", "Co"}]
    made = []
    for _ in range(count):
        words: list[str] = []
        wanted = min(max(int(draw.lognormvariate(3.4, 0.8)), 3), 190)
        while len(words) < wanted:
            words += draw.choice(parts).split()
        words = words[:wanted]
        if draw.random() < odd:
            for _ in range(draw.randint(1, 4)):
                extra = draw.choice([draw.choice(ODD), "".join(draw.choices(letters, k=6))])
                words.insert(draw.randint(0, len(words)), extra)
        made.append(("" if draw.random() < odd / 10 else " ").join(words))
    return pa.array(made, pa.large_string())


def step(engine: str) -> Tokenize:
    """Return the step, as a job has it."""
    import minilm

    path = str(minilm.model_folder() / "tokenizer.json")
    return Tokenize(TokenizeOptions(column="text", tokenizer=path, max_length=256, engine=engine))


def encoded(made: Tokenize, column: pa.Array) -> tuple[int, float]:
    """Encode a column in chunks; return the tokens and the CPU seconds."""
    tokens, began = 0, time.process_time()
    for at in range(0, len(column), CHUNK):
        rows = pa.RecordBatch.from_arrays([column.slice(at, CHUNK)], names=["text"])
        tokens += len(made.encode(rows).rows["input_ids"].values)
    return tokens, time.process_time() - began


def compare(count: int) -> None:
    """Encode texts in both ways and hold every id against the other."""
    quick, library, seen = step("auto"), step("library"), 0
    for seed in range(-(-count // 50_000)):
        column = texts(min(50_000, count - seen), odd=0.3, seed=seed)
        for at in range(0, len(column), CHUNK):
            rows = pa.RecordBatch.from_arrays([column.slice(at, CHUNK)], names=["text"])
            if not quick.encode(rows).rows.equals(library.encode(rows).rows):
                raise SystemExit(f"other ids among texts {seen + at} to {seen + at + CHUNK} (seed {seed})")
        seen += len(column)
    print(f"{seen:,} texts, every id equal")


def main() -> None:
    """Run the rounds, print them, and write the result."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--equal", type=int, metavar="N")
    chosen = parser.parse_args()
    if chosen.equal:
        compare(chosen.equal)
        return
    column = texts(chosen.texts, odd=0.0, seed=0)
    rates: dict[str, list[float]] = {"library": [], "cold": [], "warm": []}
    for _ in range(chosen.rounds):
        fresh, library = step("auto"), step("library")
        for made in (fresh, library):
            encoded(made, column.slice(0, 1))  # what is loaded once
        counts = []
        for name, made in (("library", library), ("cold", fresh), ("warm", fresh)):
            tokens, seconds = encoded(made, column)
            counts.append(tokens)
            rates[name].append(tokens / seconds)
        if len(set(counts)) > 1:
            raise SystemExit(f"other numbers of tokens came out: {counts}")
    result: dict[str, Any] = {
        "command": "python " + " ".join(["benchmarks/tokenize_texts.py", *sys.argv[1:]]),
        "texts": len(column),
        "tokens": counts[0],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("tokenizers", "pyarrow", "numpy")},
    }
    for name, values in rates.items():
        ratios = sorted(value / other for value, other in zip(values, rates["library"], strict=True))
        result[name] = {
            "tokens_per_second": round(statistics.median(values)),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
        }
        rate, ratio = statistics.median(values) / 1e6, result[name]["ratio"]
        print(f"{name:<8} {rate:6.2f} M tokens/s   {ratio:5.2f} times the library")
    (HERE / "results" / "tokenize_texts.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
