"""Write docs/job-file.md from the classes that check a job file: `python .ci/job_reference.py`."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from batchinfer import registry
from batchinfer.config import error_section, observe, sections
from batchinfer.config.descriptions import describe_fields
from batchinfer.config.limits import LimitsOptions
from batchinfer.config.lineage import OpenLineageOptions
from batchinfer.config.nested import CanaryOptions, RetryOptions

HERE = Path(__file__).parents[1]
SECTIONS = {
    "input": sections.InputOptions,
    "model": sections.ModelOptions,
    "model.canary": CanaryOptions,
    "batching": sections.BatchingOptions,
    "output": sections.OutputOptions,
    "checkpoint": sections.CheckpointOptions,
    "errors": error_section.ErrorsOptions,
    "errors.retry": RetryOptions,
    "compute": sections.ComputeOptions,
    "limits": LimitsOptions,
    "observe": sections.ObserveOptions,
    "observe.pushgateway": observe.PushgatewayOptions,
    "observe.openlineage": OpenLineageOptions,
}
EXTENDED = {
    "input": ("sources", "input.format"),
    "model": ("backends", "model.backend"),
    "output": ("sinks", "output.format"),
}
HEAD = """# The job file

<!-- Written by .ci/job_reference.py from the classes that check a job file; a test compares it. -->

A job file is YAML: plain mappings, lists, texts, numbers, `true`, `false` and `null`. Anchors, aliases, tags and duplicate
keys are refused; `no`, `12:30` and dates are texts; a version such as `1.10` needs quotes. Relative paths are relative to
the job file. `${param:NAME}` is a parameter (section `params`, `--param NAME=VALUE`), `${env:NAME}` a variable of the
environment, allowed in paths and in storage options only, so that secrets stay out of files and outputs. `--set KEY=VALUE`
overrides any key.

Needed are `job`, `input.path`, `model` and `output.path`; everything else has a default. Keys marked ○ change nothing in the
output and may differ when a job is resumed; all others are part of the job's fingerprint.

| key | type | default | |
|---|---|---|---|
| `job` | text | needed | Name of the job, for people, metrics and the manifest. |
| `version` | `1` | `1` | Version of this format. |
| `description` | text | | ○ |
| `labels` | mapping of texts | | ○ |
| `params` | mapping | | ○ Parameters and their defaults; one without a default (`null`) must be given. |
| `preprocess` | list of steps | | From columns to tensors, in order: `- name: {options}`, `- name: value` or `- name`. |
| `postprocess` | list of steps | | From results to columns, in order. |
"""


def main() -> None:
    """Write the reference."""
    (HERE / "docs" / "job-file.md").write_text(reference())


def reference() -> str:
    """Return the whole text."""
    parts = [HEAD]
    for name, cls in SECTIONS.items():
        parts.append(f"\n## `{name}`\n\n{_doc(cls)}\n\n{_table(cls, skip=())}")
        if name in EXTENDED:
            kind, key = EXTENDED[name]
            for component in registry.names(kind):
                options = registry.load(kind, component).Options
                table = _table(options, skip=tuple(cls.model_fields))
                if table:
                    parts.append(f"\n### `{key}: {component}`\n\n{table}")
    for kind, title in (("preprocessors", "preprocess"), ("postprocessors", "postprocess")):
        parts.append(f"\n## Steps of `{title}`\n")
        for name in registry.names(kind):
            component = registry.load(kind, name)
            short = component.shorthand.rstrip("_")
            doc = _doc(component)
            parts.append(
                f"\n### `{name}`\n\n{doc} Short form: `- {name}: {short.upper()}`.\n\n{_table(component.Options, skip=())}"
            )
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _doc(cls: Any) -> str:
    return " ".join((cls.__doc__ or "").split())


def _table(cls: Any, *, skip: tuple[str, ...]) -> str:
    describe_fields(cls)
    rows = []
    for name, field in cls.model_fields.items():
        if name in skip:
            continue
        neutral = isinstance(field.json_schema_extra, dict) and not field.json_schema_extra.get(
            "affects_output", True
        )
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        mark = "○ " if neutral else ""
        rows.append(
            f"| `{field.alias or name}` | {_type(field.annotation)} | {_default(field)} | {mark}{text} |"
        )
    head = "| key | type | default | |\n|---|---|---|---|\n"
    return head + "\n".join(rows) + "\n" if rows else ""


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_type(one) for one in arguments if one is not type(None))
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return f"list of {len(arguments)} {_type(arguments[0])}s"
        return (
            f"list of {_type(arguments[0])}s"
            if get_origin(arguments[0]) is not Literal
            else f"list of {_type(arguments[0])}"
        )
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`"}
    return names.get(annotation, "mapping")


def _default(field: Any) -> str:
    if field.default_factory is not None or field.default is None:
        return ""
    if field.default is PydanticUndefined:
        return "needed"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    if value in ([], {}):
        return ""
    text = str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")
    return f"`{re.sub(r'(?<=[0-9])0{6,}$', '…', text)}`" if isinstance(value, float) else f"`{text}`"


if __name__ == "__main__":
    main()
