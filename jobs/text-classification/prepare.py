"""Make the model and the data of the text-classification job: which package is a docstring from?

MiniLM is frozen; a linear layer on its first token's vector is trained on a part of the docstrings,
and the job classifies the others. The result is a folder as `transformers` saves it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import docstrings  # noqa: E402 - beside this folder
import minilm  # noqa: E402

CLASSES = ("stdlib", "numpy", "torch", "pyarrow")
TRAINED = 300
CLASSIFIED = 500
MAX_TOKENS = 64


def main() -> None:
    """Make what is not there yet."""
    if (HERE / "data" / "_DONE").exists() and (HERE / "model" / "config.json").exists():
        return
    found = docstrings.collect(per_package=TRAINED + CLASSIFIED)
    train({name: found[name][::2][:TRAINED] for name in CLASSES}, HERE / "model")
    print(f"model   {HERE}/model/")
    rows = [(name, where, text) for name in CLASSES for where, text in found[name][1::2][:CLASSIFIED]]
    (HERE / "data").mkdir(exist_ok=True)
    columns = dict(zip(("package", "name", "text"), zip(*rows, strict=True), strict=True))
    pq.write_table(
        pa.table({key: pa.array(values) for key, values in columns.items()}), HERE / "data" / "texts.parquet"
    )
    (HERE / "data" / "_DONE").touch()
    print(f"data    {len(rows):,} docstrings in {HERE}/data/")


def train(texts: dict[str, list[tuple[str, str]]], folder: Path) -> None:
    """Fit the classifier of a BertForSequenceClassification on frozen features, and save it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    source = minilm.model_folder()
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForSequenceClassification.from_pretrained(
        source,
        num_labels=len(CLASSES),
        id2label=dict(enumerate(CLASSES)),
        label2id={name: at for at, name in enumerate(CLASSES)},
    ).eval()
    labels = torch.tensor([CLASSES.index(name) for name, rows in texts.items() for _ in rows])
    plain = [text for rows in texts.values() for _, text in rows]
    features = []
    with torch.inference_mode():
        for at in range(0, len(plain), 64):
            batch = tokenizer(
                plain[at : at + 64], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            features.append(model.bert(**batch).pooler_output)
    x = torch.cat(features).clone()
    optimizer = torch.optim.Adam(model.classifier.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(300):
        loss = torch.nn.functional.cross_entropy(model.classifier(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
