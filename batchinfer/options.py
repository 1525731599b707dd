"""How a component declares its part of the job file: a frozen class of fields with docstrings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

__all__ = [
    "ByteText",
    "Bytes",
    "ContentPath",
    "EntryPoint",
    "Field",
    "JobPath",
    "Options",
    "Secret",
    "ValidationInfo",
    "field_validator",
    "model_validator",
    "neutral",
    "num_bytes",
]

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]i?B)")
_ENTRY_POINT = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


class Options(BaseModel):
    """A section of the job file. Unknown keys are refused, nothing is coerced, nothing changes.

    A field's docstring (the string below it) is its description in the JSON Schema (`describe_fields`).
    `shorthand` names the field that `- step: value` sets.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        defer_build=True,  # a job uses few of the classes
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Leave secrets out of what can end in a log or a traceback."""
        fields = type(self).model_fields
        secret = {
            name
            for name, field in fields.items()
            if any(mark is Secret for mark in map(type, field.metadata))
        }
        return ((name, value) for name, value in super().__repr_args__() if name not in secret)


def neutral(default: Any, **more: Any) -> Any:
    """Declare a field that does not change the output: it stays out of the fingerprint."""
    extra: dict[str, Any] = {"affects_output": False}
    if callable(default):
        return Field(default_factory=default, json_schema_extra=extra, **more)
    return Field(default=default, json_schema_extra=extra, **more)


def _resolve(value: object, info: ValidationInfo) -> object:
    """Make a relative path absolute, against the folder of the job file."""
    root = (info.context or {}).get("root")
    if not isinstance(value, str) or root is None or _URL.match(value):
        return value
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"names nobody's home folder: {value!r}") from None
    return str(path if path.is_absolute() else Path(root) / path)


def _entry_point(value: object) -> object:
    if isinstance(value, str) and not _ENTRY_POINT.match(value):
        raise ValueError(f"must look like `module:name`, got {value!r}")
    return value


class Content:
    """Marks a path whose *content* is what counts: its sha256 stands in the fingerprint."""


class Code:
    """Marks user code: the sha256 of its module stands in the fingerprint."""


class Secret:
    """Marks a value that never reaches a log, a stored job or an error message."""


def num_bytes(text: str) -> int:
    """Read `512MiB` or `2GB` as a number of bytes. Raises ValueError for what says none."""
    found = _BYTES.fullmatch(text)
    if found is None:
        raise ValueError(f"must be a number of bytes such as 1073741824, 512MiB or 2GB, got {text!r}")
    number, unit = found.groups()
    power = " KMGT".index(unit[0])
    return int(float(number) * (1024 if unit[1:] == "iB" else 1000) ** power)


def _bytes(value: object) -> object:
    return num_bytes(value) if isinstance(value, str) else value


def _byte_text(value: str) -> str:
    num_bytes(value)
    return value


Bytes = Annotated[
    int,
    BeforeValidator(_bytes),
    Field(ge=1),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": f"^{_BYTES.pattern}$"}]}
    ),
]
"""A number of bytes: 1073741824, 512MiB or 2GB."""

ByteText = Annotated[
    str,
    AfterValidator(_byte_text),
    WithJsonSchema({"type": "string", "pattern": f"^{_BYTES.pattern}$"}),
]
"""A number of bytes as text only: 512MiB or 2GB."""

JobPath = Annotated[str, BeforeValidator(_resolve)]
"""A local path or a URL; a relative path is relative to the job file."""

ContentPath = Annotated[str, BeforeValidator(_resolve), Content()]
"""Like `JobPath`, for a model or tokenizer: moving the file changes nothing, editing it does."""

EntryPoint = Annotated[str, BeforeValidator(_entry_point), Code()]
"""`module:name`, importable from the folder of the job file or from an installed package."""
