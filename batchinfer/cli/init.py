"""`batchinfer init MODEL DATA`: a commented job file from what the model and the data say of themselves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchinfer.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from batchinfer.runner.messages import Ready

NAME = "init"


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model file or folder.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Files, a folder or a glob.")],
    *,
    output: Annotated[str, typer.Option(help="Where results will go.")] = "output/",
    write: Annotated[
        str | None, typer.Option("--write", "-w", metavar="FILE", help="Write to a file, not to stdout.")
    ] = None,
) -> None:
    """Propose a job file: reads the model's signature and the data's schema, runs nothing."""
    if write is not None and Path(write).exists():
        raise UsageError(f"{write} exists already", hint="choose another name, or delete it first")
    schema, ready, names = _look(model, data, output)
    text = "\n".join(_propose(model, data, output, schema=schema, ready=ready, names=names)) + "\n"
    if write is None:
        typer.echo(text, nl=False)
        return
    Path(write).write_text(text)
    typer.echo(f"wrote {write}; next: batchinfer validate {write}", err=True)


def _look(model: str, data: str, output: str) -> tuple[pa.Schema, Ready, tuple[str, str]]:
    """Ask the data for its schema and the model for its inputs and outputs."""
    import base64

    from batchinfer import registry
    from batchinfer.config import load_job
    from batchinfer.runner.check import check_model
    from batchinfer.runner.plan import schema_of

    document = {
        "job": "proposed",
        "input": {"path": data},
        "model": {"path": model},
        "output": {"path": output},
    }
    job = load_job(document)
    source = registry.load("sources", job.input.format)(job.input)
    schema = schema_of(source, source.list_entries()[:1])
    packed = base64.b64encode(schema.serialize().to_pybytes()).decode()
    ready = check_model(job, schema=packed, device="cpu", threads=1, purpose="describe")
    return schema, ready, (job.input.format, job.model.backend)


def _propose(
    model: str, data: str, output: str, *, schema: pa.Schema, ready: Ready, names: tuple[str, str]
) -> list[str]:
    """Write the job file, section by section."""
    from batchinfer import tensors

    columns = ", ".join(f"{field.name} {tensors.format_type(field.type)}" for field in schema)
    inputs = ", ".join(map(str, ready.inputs)) or "not declared"
    outputs = ", ".join(map(str, ready.outputs)) or "not declared"
    steps, used, bound = _preprocess(model, schema, ready)
    posts = _postprocess(ready)
    carried = [field.name for field in schema if field.name not in used and _small(field.type)]
    return [
        f"job: {_job_name(model)}",
        "",
        "input:",
        f"  path: {data}",
        f"  format: {names[0]}",
        f"  # columns: {columns}",
        '  # where: "column > 0"        keep only some rows',
        "",
        *steps,
        "model:",
        f"  backend: {names[1]}",
        f"  path: {model}",
        f"  # inputs:  {inputs}",
        f"  # outputs: {outputs}",
        *_renamed(bound),
        "",
        *posts,
        "output:",
        f"  path: {output}",
        f"  carry: [{', '.join(carried)}]",
        "",
    ]


def _preprocess(model: str, schema: pa.Schema, ready: Ready) -> tuple[list[str], set[str], dict[str, str]]:
    """Propose the steps from columns to tensors: lines, the columns they use, and renamed inputs."""
    inputs = {spec.name: spec for spec in ready.inputs}
    texts = [field.name for field in schema if _is_text(field.type)]
    if "input_ids" in inputs and texts:
        found = _beside(model, "tokenizer.json")
        column = next((name for name in texts if name in {"text", "content", "body"}), texts[0])
        tokenizer = found or "TOKENIZER.json"
        return (
            [
                "preprocess:",
                f"  - tokenize: {{column: {column}, tokenizer: {tokenizer}, max_length: 256}}",
                *([] if found else ["    # no tokenizer.json lies beside the model: name it above"]),
                "",
            ],
            {column},
            {},
        )
    for spec in ready.inputs:
        image = len(spec.shape) == 4 and 3 in spec.shape[1:2]  # noqa: PLR2004 - batch, channels, height, width
        blobs = [field.name for field in schema if _is_binary(field.type)]
        if image and blobs:
            size = spec.shape[2] or 224
            step = f"  - image: {{column: {blobs[0]}, size: {size}}}"
            return ["preprocess:", step, ""], {blobs[0]}, {spec.name: "pixel_values"}
        numbers = [field.name for field in schema if _is_number(field.type)]
        if len(spec.shape) == 2 and spec.dtype.startswith("float") and numbers:  # noqa: PLR2004 - rows, features
            wanted = numbers[: spec.shape[1] or len(numbers)]
            note = "  # check that these are the model's features, in its order"
            step = f"  - columns: {{columns: [{', '.join(wanted)}], to: features, dtype: {spec.dtype}}}"
            return ["preprocess:", note, step, ""], set(wanted), {spec.name: "features"}
    return [], {name for name in inputs if name in schema.names}, {}


def _postprocess(ready: Ready) -> list[str]:
    """Propose what to do with the outputs: pool what varies, rank what looks like classes."""
    for spec in ready.outputs:
        if len(spec.shape) == 3 and spec.shape[1] is None:  # noqa: PLR2004 - rows, tokens, features
            return [
                "postprocess:",
                f"  - mean_pool: {{from: {spec.name}, to: embedding, normalize: true}}",
                "",
            ]
    for spec in ready.outputs:
        if len(spec.shape) == 2 and (spec.shape[1] or 0) > 1 and "logit" in spec.name:  # noqa: PLR2004 - rows, classes
            return ["postprocess:", f"  - argmax: {{from: {spec.name}, to: class}}", ""]
    return []


def _renamed(bound: dict[str, str]) -> list[str]:
    """Say which columns feed inputs of other names."""
    pairs = [f"{name}: {column}" for name, column in bound.items() if name != column]
    return [f"  inputs: {{{', '.join(pairs)}}}"] if pairs else []


def _job_name(model: str) -> str:
    path = Path(model.rstrip("/"))
    name = next((part for part in (path.stem, *path.parts[-2::-1]) if part not in {"model", "models"}), "job")
    return "".join(char if char.isalnum() or char in "-_" else "-" for char in name) or "job"


def _beside(model: str, name: str) -> str | None:
    folder = model if os.path.isdir(model) else os.path.dirname(model)  # noqa: PTH112, PTH120 - keeps the user's spelling
    path = os.path.join(folder, name)  # noqa: PTH118 - see above
    return path if os.path.exists(path) else None  # noqa: PTH110 - see above


def _is_text(type_: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _is_binary(type_: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _is_number(type_: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def _small(type_: pa.DataType) -> bool:
    """Tell whether a column is worth carrying unasked: keys and labels, not blobs and vectors."""
    import pyarrow as pa

    return not (pa.types.is_nested(type_) or _is_binary(type_))
