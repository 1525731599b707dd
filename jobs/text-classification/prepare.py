"""Make the model and the data of this job: which package does a docstring come from?

MiniLM reads the texts and stays as it is; the two small layers above it are trained on one half of the
docstrings, and the job classifies the other half. The model is a folder as `transformers` saves it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import docstrings  # noqa: E402 - beside this folder
import minilm  # noqa: E402

if TYPE_CHECKING:
    import torch

CLASSES = ("stdlib", "numpy", "torch", "pydantic")
ROWS_PER_CLASS = 600
MAX_TOKENS = 64
STEPS = 200


def main() -> None:
    """Make what is not there yet."""
    model, data = HERE / "model", HERE / "data"
    if (data / "_DONE").exists() and (model / "config.json").exists():
        return
    found = docstrings.collect()
    picked = {name: docstrings.spread(found[name], ROWS_PER_CLASS) for name in CLASSES}
    if not (model / "config.json").exists():
        print("training a classifier on MiniLM ...", flush=True)
        train([(at, row.text) for at, name in enumerate(CLASSES) for row in picked[name][::2]], model)
        print(f"model   {model}/")
    if not (data / "_DONE").exists():
        rows = [{"package": name, **row._asdict()} for name in CLASSES for row in picked[name][1::2]]
        write(rows, data)
        print(f"data    {len(rows):,} docstrings in {data}/")


def write(rows: list[dict[str, str]], folder: Path) -> None:
    """Write JSON lines: the other format that such texts come in."""
    import json

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "docstrings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "_DONE").touch()


def train(examples: list[tuple[int, str]], folder: Path) -> None:
    """Fit the head of a BertForSequenceClassification, and save it with its tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    minilm.quiet()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(minilm.model_folder())
    model = BertForSequenceClassification.from_pretrained(
        minilm.model_folder(),
        num_labels=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        label2id={name: at for at, name in enumerate(CLASSES)},
    ).eval()
    read = first_tokens(model, tokenizer, [text for _, text in examples])
    wanted = torch.tensor([label for label, _ in examples])
    head = torch.nn.Sequential(model.bert.pooler.dense, torch.nn.Tanh(), model.classifier)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3, weight_decay=1e-3)
    for _ in range(STEPS):
        loss = torch.nn.functional.cross_entropy(head(read), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Renamed when complete: an interrupted preparation starts anew.
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def first_tokens(model: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return what MiniLM makes of each text's first token, float32[texts, 384]."""
    import torch

    found = []
    with torch.no_grad():
        for at in range(0, len(texts), 64):
            batch = tokenizer(
                texts[at : at + 64], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            found.append(model.bert(**batch).last_hidden_state[:, 0])
    return torch.cat(found)


if __name__ == "__main__":
    main()
