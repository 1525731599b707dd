"""Names of classes: from a text file, one per line, from JSON, or written in the job."""

from __future__ import annotations

import json
from pathlib import Path

from batchinfer.errors import ContractError


def read_labels(path: str) -> tuple[str, ...]:
    """Read labels in the order of their class numbers. Raises ContractError.

    A .json file holds a list, or an object from number to label (as `id2label` in a model's config).
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if not path.endswith(".json"):
            return tuple(text.splitlines())
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise ContractError(f"the labels cannot be read: {error}", where=path) from error
    if isinstance(found, dict):
        found = found.get("id2label", found)
        try:
            found = [found[key] for key in sorted(found, key=int)]
        except ValueError:
            raise ContractError(
                "the labels are no list and no object from number to label", where=path
            ) from None
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise ContractError("the labels are no list of texts", where=path)
    return tuple(found)


def check_number(labels: tuple[str, ...], classes: int | None) -> None:
    """Raise ContractError where there are more classes than labels, or the other way round."""
    if classes is not None and classes != len(labels):
        raise ContractError(f"there are {len(labels)} labels for {classes} classes")
