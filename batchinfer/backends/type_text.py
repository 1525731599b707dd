"""Tensor types as users write them: `float32[?, 3, 224, 224]`, with ? for an axis that varies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from batchinfer import tensors
from batchinfer.data import TensorSpec
from batchinfer.options import Field, Options, field_validator

_TENSOR = re.compile(r"(\w+)\s*\[([^\]]*)\]")
_EXAMPLE = "write float32[?, 384], int64[?, ?], string[?], list<string>[?]"

SpecTexts = Annotated[dict[str, str], Field(min_length=1)]


def parse_spec(name: str, text: str) -> TensorSpec:
    """Parse `dtype[?, sizes]`: the first axis is the batch, always ?. Without brackets: one value per row.

    Raises ValueError that says what can be written.
    """
    text = text.strip()
    if text.endswith("[?]") and "<" in text:
        text = text[:-3]
    if not (found := _TENSOR.fullmatch(text)):
        return TensorSpec(name, _dtype(text), (None,))
    sizes = [size.strip() for size in found.group(2).split(",")]
    if sizes[0] != "?":
        raise ValueError(f"{text!r} must begin with ? for the batch axis ({_EXAMPLE})")
    if any(size != "?" and not size.isdecimal() for size in sizes):
        raise ValueError(f"{text!r} has a size that is neither a number nor ? ({_EXAMPLE})")
    return TensorSpec(
        name, _dtype(found.group(1)), tuple(None if size == "?" else int(size) for size in sizes)
    )


def parse_specs(texts: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Parse types by name, in their order. Raises ValueError naming the first that is wrong."""
    return tuple(parse_spec(name, text) for name, text in texts.items())


def parse_outputs(texts: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """Parse types of outputs, which become columns and so cannot be `any`. Raises ValueError."""
    specs = parse_specs(texts)
    for spec in specs:
        if spec.dtype == "any":
            raise ValueError(f"{spec.name}: an output needs a type of its own, not any ({_EXAMPLE})")
    return specs


def checked(texts: dict[str, str]) -> dict[str, str]:
    """Return the texts if all of them are types; for use as a validator. Raises ValueError."""
    for name, text in texts.items():
        try:
            parse_spec(name, text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return texts


def checked_outputs(texts: dict[str, str]) -> dict[str, str]:
    """Return the texts if all of them are types of outputs; for use as a validator. Raises ValueError."""
    parse_outputs(checked(texts))
    return texts


class Signature(Options):
    """What a model takes and gives, where its file does not say."""

    inputs: SpecTexts
    """Input -> type, such as `pixels: "float32[?, 3, 224, 224]"`; ? is an axis that varies."""

    outputs: SpecTexts
    """Output -> type."""

    _known_inputs = field_validator("inputs")(checked)
    _known_outputs = field_validator("outputs")(checked_outputs)


def _dtype(text: str) -> str:
    """Return a dtype as TensorSpec has it. Raises ValueError."""
    if text == "any":
        return text
    return tensors.format_type(tensors.parse_type(text))
