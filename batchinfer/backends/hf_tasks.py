"""What each task makes of a transformer's output: vectors, labels, entities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

ENTITIES = "list<struct<label: string, score: float32, start: int32, end: int32>>"
"""Type of token classification's `entities`: places are characters of the text, [start, end)."""

_ENTITY = pa.struct(
    [("label", pa.string()), ("score", pa.float32()), ("start", pa.int32()), ("end", pa.int32())]
)
_TINY = 1e-9


def pooled(hidden: Any, mask: Any, *, pooling: str, normalize: bool) -> Any:
    """Return one vector per row: (rows, tokens, d) and its mask to (rows, d), float32."""
    import torch

    hidden = hidden.float()
    if pooling == "cls":
        # The first token that is none of the padding, on whichever side that is.
        first = mask.argmax(dim=1)
        vectors = hidden[torch.arange(len(hidden), device=hidden.device), first]
    else:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        vectors = (hidden * weights).sum(1) / weights.sum(1).clamp(min=_TINY)
    return torch.nn.functional.normalize(vectors, p=2, dim=1) if normalize else vectors


def probabilities(logits: Any, *, problem: str | None) -> Any:
    """Return probabilities of shape (rows, labels): independent ones where a row may have several labels.

    `problem` is the folder's `problem_type`; the numbers of a regression are what they are.
    """
    scores = logits.float()
    if problem == "regression":
        return scores
    several = problem == "multi_label_classification"
    return scores.sigmoid() if several or scores.shape[-1] == 1 else scores.softmax(-1)


def best_labels(
    chances: np.ndarray[Any, Any], labels: Sequence[str]
) -> tuple[pa.Array, np.ndarray[Any, Any]]:
    """Return each row's most probable label, and its probability."""
    best = chances.argmax(-1)
    names = pa.array(labels, pa.string()).take(pa.array(best))
    return names, np.ascontiguousarray(np.take_along_axis(chances, best[:, None], 1)[:, 0])


def entities(
    chances: np.ndarray[Any, Any],
    labels: Sequence[str],
    *,
    spans: np.ndarray[Any, Any],
    words: Sequence[Sequence[int | None]],
) -> pa.Array:
    """Return each row's entities: neighbouring tokens of one label as one, with their mean probability.

    `chances` has shape (rows, tokens, labels), `spans` (rows, tokens, 2), and `words` each token's word,
    None for what is not of the text. Labels lose their `B-` and `I-`; `O` is no entity. A word has the
    label of its first token.
    """
    best = chances.argmax(-1)
    rows = []
    for row in range(len(chances)):
        found: list[dict[str, Any]] = []
        before: tuple[int | None, str] = (None, "O")
        for token, word in enumerate(words[row]):
            if word is None:
                before = (None, "O")
                continue
            whole = labels[best[row, token]] if word != before[0] else before[1]
            label = whole[2:] if whole[:2] in {"B-", "I-"} else whole
            goes_on = word == before[0] or (not whole.startswith("B-") and label == _plain(before[1]))
            before = (word, whole)
            if label == "O":
                continue
            score = float(chances[row, token, best[row, token]])
            start, end = (int(place) for place in spans[row, token])
            if goes_on and found:
                found[-1]["end"] = end
                found[-1]["scores"].append(score)
            else:
                found.append({"label": label, "scores": [score], "start": start, "end": end})
        rows.append([{**entity, "score": float(np.mean(entity.pop("scores")))} for entity in found])
    return pa.array(rows, pa.list_(_ENTITY))


def _plain(label: str) -> str:
    return label[2:] if label[:2] in {"B-", "I-"} else label
