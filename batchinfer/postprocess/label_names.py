"""Names of classes: from a text file, one per line, from JSON, or written in the job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batchinfer.errors import ContractError, DataError


def read_labels(path: str) -> tuple[str, ...]:
    """Read labels in the order of their class numbers. Raises ContractError.

    A .json file holds a list, or an object from number to label (as `id2label` in a model's config).
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if not path.endswith(".json"):
            # Not splitlines(): it splits at characters that may stand in a name.
            return _some(tuple(text.rstrip("\n").split("\n")) if text.strip() else (), path)
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise ContractError(
            f"the labels cannot be read: {error}", where=path, hint="a text file, one label per line, or JSON"
        ) from error
    if isinstance(found, dict):
        found = _by_number(found.get("id2label", found), path)
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise ContractError("the labels are no list of texts", where=path)
    return _some(tuple(found), path)


def _some(labels: tuple[str, ...], path: str) -> tuple[str, ...]:
    if not labels:
        raise ContractError("there are no labels in the file", where=path)
    return labels


def _by_number(found: Any, path: str) -> list[Any]:
    """Return the labels of an object {"0": label, …} in order; a gap would shift all that follow."""
    try:
        by_number = {int(key): label for key, label in found.items()}
    except (AttributeError, ValueError):
        raise ContractError("the labels are no list and no object from number to label", where=path) from None
    for number in range(len(by_number)):
        if number not in by_number:
            raise ContractError(
                f"the labels leave out class {number}", where=path, hint="number them from 0 on, without gaps"
            )
    return [by_number[number] for number in range(len(by_number))]


def check_number(labels: tuple[str, ...], classes: int | None) -> None:
    """Raise ContractError where there are more classes than labels, or the other way round."""
    if classes is not None and classes != len(labels):
        raise ContractError(f"there are {len(labels)} labels for {classes} classes")


def look_up(step: str, labels: tuple[str, ...], numbers: np.ndarray[Any, Any]) -> pa.Array:
    """Return the label of each class number. Raises DataError for a number that has none."""
    if numbers.size:
        for number in (int(numbers.min()), int(numbers.max())):
            if not 0 <= number < len(labels):
                raise DataError(
                    f"{step}: class {number} has no label: there are {len(labels)}, from 0 on",
                    hint="the labels are another model's, or some are missing",
                )
    return pa.array(labels, pa.string()).take(pa.array(numbers))
