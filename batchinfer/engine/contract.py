"""Do the job's parts fit? Columns to steps, steps to model, model to output; before the first row."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from batchinfer import tensors
from batchinfer.data import TensorSpec
from batchinfer.engine.sidecar import APART, POSITION
from batchinfer.errors import ContractError, DataError
from batchinfer.loader.batches import Binding
from batchinfer.loader.costs import cost_of
from batchinfer.pixels import Pixels
from batchinfer.row_errors import ERROR_TYPE
from batchinfer.sources.drift import why_absent

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.protocols import Backend, Postprocessor, Preprocessor

META_TYPES = {
    "_source": pa.string(),
    "_row": pa.int64(),
    "_model_version": pa.string(),
    "_run": pa.string(),
}


@dataclass(frozen=True, slots=True)
class Contract:
    """What was agreed: which columns are read, what the model gets, and the schema of every part."""

    read_columns: tuple[str, ...]
    encoded: pa.Schema
    bindings: tuple[Binding, ...]
    results: pa.Schema
    output: pa.Schema
    gathered: pa.Schema
    """All that is known of a row in the end: `output`, and why it failed where that stands elsewhere."""
    hints: tuple[str, ...] = ()
    """What could be faster, in words for the user."""
    varying: frozenset[str] = frozenset()
    """Results whose second axis varies from batch to batch: values for each token."""

    @property
    def ragged(self) -> bool:
        """Whether an input is padded, so that batches are better cut by tokens."""
        return any(tensors.is_ragged(self.encoded.field(bind.column).type) for bind in self.bindings)

    @property
    def row_bytes(self) -> int:
        """Bytes of one encoded row; a ragged column counts as 256 numbers."""
        return sum(_row_bytes(self.encoded.field(bind.column).type) for bind in self.bindings) or 1

    @property
    def token_bytes(self) -> int:
        """Bytes that the ragged inputs take for each token."""
        return cost_of("bytes", self.encoded, self.bindings, None).per_token

    @property
    def pixels(self) -> dict[str, Pixels]:
        """Inputs that come as bytes and become numbers on the device."""
        fields = {bind.input: self._field(bind) for bind in self.bindings}
        found = {name: Pixels.of_field(field.metadata) for name, field in fields.items()}
        return {name: pixels for name, pixels in found.items() if pixels is not None}

    @property
    def longest(self) -> int | None:
        """The most tokens of a row, where the step that makes them says so."""
        ragged = [field for field in map(self._field, self.bindings) if tensors.is_ragged(field.type)]
        found = [int((field.metadata or {}).get(b"longest", 0)) for field in ragged]
        return max(found) if found and all(found) else None

    def _field(self, bind: Binding) -> pa.Field:
        return self.encoded.field(bind.column)


def check_contract(
    job: Job,
    source: pa.Schema,
    steps: Sequence[Preprocessor],
    backend: Backend,
    posts: Sequence[Postprocessor],
) -> Contract:
    """Check every seam of the job. Raises ContractError that lists all problems, each with its place."""
    problems: list[str] = []
    _refuse_drift(job, source, steps, backend)
    if job.input.columns is not None:
        _report_missing(job, ("input", "columns"), job.input.columns, source, problems)
        source = taken(job, source)
    _report_missing(job, ("output", "carry"), job.output.carry, source, problems)
    _report_uncarried(job, problems)
    needed = {name for name in job.output.carry if name in source.names}
    encoded = _through_steps(job, source, steps, needed, problems)
    bindings = _bind(job, encoded, backend, problems) if encoded is not None else ()
    needed |= {bind.column for bind in bindings if bind.column in source.names}
    specs = _through_posts(job, backend, posts, problems)
    results = _results(job, specs, problems) if specs is not None else None
    if problems:
        raise ContractError("\n".join(problems))
    gathered = _output_schema(job, source, results)
    apart = APART if job.errors.to == "separate" else ()
    output = pa.schema([field for field in gathered if field.name not in apart])
    read = tuple(name for name in source.names if name in needed)
    assert encoded is not None
    assert specs is not None
    varying = frozenset(name for name, spec in specs.items() if None in spec.shape[1:2])
    return Contract(
        read, encoded, bindings, results, output, gathered, _hints(source, read, results), varying
    )


def taken(job: Job, source: pa.Schema) -> pa.Schema:
    """Return what the first step sees of the input: all of it, or the columns of `input.columns`."""
    names = job.input.columns
    return source if names is None else pa.schema([field for field in source if field.name in names])


def _report_missing(
    job: Job, key: tuple[str, ...], names: Sequence[str], schema: pa.Schema, problems: list[str]
) -> None:
    for at, name in enumerate(names):
        if name not in schema.names:
            what = f"column {name!r} is not in the input{_guess(name, schema.names)}"
            problems.append(f"{job.place((*key, at))}  {'.'.join(key)}: {what}\n  {_columns(schema)}")


def _refuse_drift(job: Job, source: pa.Schema, steps: Sequence[Preprocessor], backend: Backend) -> None:
    """Raise DataError for a column that the job uses and that the files disagree about."""
    used = {*(job.input.columns or ()), *job.output.carry}
    used |= {name for step in steps for name in step.input_columns() or ()}
    used |= {job.model.inputs.get(spec.name, spec.name) for spec in backend.inputs}
    for name in sorted(used - set(source.names)):
        reason = why_absent(source, name)
        if reason is not None:
            raise DataError(reason, hint="convert the files, or read them by separate jobs")


def _report_uncarried(job: Job, problems: list[str]) -> None:
    for at, name in enumerate(job.output.partition_by):
        if name not in job.output.carry:
            where = job.place(("output", "partition_by", at))
            problems.append(
                f"{where}  output.partition_by: column {name!r} is not carried\n  → add it to output.carry"
            )


def _through_steps(
    job: Job, schema: pa.Schema, steps: Sequence[Preprocessor], needed: set[str], problems: list[str]
) -> pa.Schema | None:
    """Follow the schema through the preprocessing steps; None once a step refuses it."""
    source = set(schema.names)
    for at, step in enumerate(steps):
        key = ("preprocess", at, job.preprocess[at].name)
        where = f"{job.place(key)}  preprocess[{at}].{job.preprocess[at].name}:"
        asked = step.input_columns()
        wanted = frozenset(schema.names) if asked is None else asked
        missing = sorted(wanted - set(schema.names))
        for name in missing:
            guess = _guess(name, schema.names)
            problems.append(f"{where} column {name!r} is not there{guess}\n  {_columns(schema)}")
        if missing:
            return None
        needed |= wanted & source
        try:
            schema = step.output_schema(schema)
        except ContractError as error:
            problems.append(f"{where} {error}")
            return None
    return schema


def _bind(job: Job, encoded: pa.Schema, backend: Backend, problems: list[str]) -> tuple[Binding, ...]:
    """Find the column of every model input, and check its dtype and shape."""
    bindings = []
    known = {spec.name for spec in backend.inputs}
    for name in job.model.inputs:
        if name not in known:
            what = f"the model has no input {name!r}{_guess(name, sorted(known))}; it has {_specs(backend)}"
            problems.append(f"{job.place(('model', 'inputs', name))}  model.inputs.{name}: {what}")
    for spec in backend.inputs:
        column = job.model.inputs.get(spec.name, spec.name)
        if column not in encoded.names:
            problems.append(
                f"{job.place(('model', 'inputs'))}  model: input `{spec}` has no column {column!r}"
                f"{_guess(column, encoded.names)}\n  {_columns(encoded)}"
                f"\n  → name the column: model: {{inputs: {{{spec.name}: COLUMN}}}}"
            )
            continue
        given = tensors.spec_of(column, encoded.field(column).type)
        travels = given.dtype if Pixels.of_field(encoded.field(column).metadata) else None
        if travels is not None:
            given = TensorSpec(column, "float32", given.shape)
        raw = _raw_shape(encoded.field(column).type, spec)
        if raw is not None:
            given = TensorSpec(column, spec.dtype, spec.shape)
        if trouble := _mismatch(given, spec):
            problems.append(f"{job.place(('model',))}  model: {trouble}")
            continue
        dtype = travels or (given.dtype if spec.dtype == "any" else spec.dtype)
        bindings.append(Binding(spec.name, column, dtype, as_vector=_is_one(given, spec), raw=raw))
    return tuple(bindings)


def _mismatch(given: TensorSpec, wanted: TensorSpec) -> str | None:
    """Say why a column cannot feed an input, or None. Widening casts are made; lossy ones are not."""
    if wanted.dtype not in {"any", given.dtype}:
        both = wanted.dtype in tensors.NUMERIC and given.dtype in tensors.NUMERIC
        if not both or not np.can_cast(given.dtype, wanted.dtype, "safe"):
            return (
                f"input `{wanted}` cannot take column `{given}`: {given.dtype} does not fit {wanted.dtype}"
                f"\n  → cast it: preprocess: - columns: {{columns: [{given.name}], dtype: {wanted.dtype}}}"
            )
    if wanted.dtype == "any" and len(wanted.shape) <= 1:
        return None
    sizes = itertools.zip_longest(given.shape[1:], wanted.shape[1:], fillvalue=-1)
    fits = all(ours is None or theirs is None or ours == theirs for ours, theirs in sizes)
    same_rank = len(given.shape) == len(wanted.shape)
    if (same_rank and fits) or _is_one(given, wanted) or wanted.dtype == "string":
        return None
    return (
        f"input `{wanted}` cannot take column `{given}`: the shapes differ"
        "\n  → stack scalar columns with preprocess: - columns: {columns: [a, b], to: features}"
    )


def _raw_shape(type_: pa.DataType, wanted: TensorSpec) -> tuple[int, ...] | None:
    """Return the shape that raw bytes of one length have as an input, row by row: None where they are no
    row of it."""
    sizes = [size for size in wanted.shape[1:] if size is not None]
    if not pa.types.is_fixed_size_binary(type_) or len(sizes) < len(wanted.shape) - 1:
        return None
    if wanted.dtype not in tensors.NUMERIC:
        return None
    fits = type_.byte_width == int(np.prod(sizes)) * np.dtype(wanted.dtype).itemsize
    return tuple(sizes) if fits else None


def _is_one(given: TensorSpec, wanted: TensorSpec) -> bool:
    """Tell whether a number per row is to feed a vector of one."""
    return given.shape == (None,) and wanted.shape == (None, 1)


def _through_posts(
    job: Job, backend: Backend, posts: Sequence[Postprocessor], problems: list[str]
) -> Mapping[str, TensorSpec] | None:
    """Follow the model's outputs through the postprocessing steps; None once a step refuses them."""
    specs: Mapping[str, TensorSpec] = {spec.name: spec for spec in backend.outputs}
    for at, step in enumerate(posts):
        name = job.postprocess[at].name
        try:
            specs = step.output_specs(specs)
        except ContractError as error:
            problems.append(f"{job.place(('postprocess', at, name))}  postprocess[{at}].{name}: {error}")
            return None
    return specs


def _results(job: Job, specs: Mapping[str, TensorSpec], problems: list[str]) -> pa.Schema:
    """Return the result columns and their types."""
    declared = job.output.columns
    if declared is None:
        for spec in specs.values():
            if None in spec.shape[1:]:
                problems.append(
                    f"{job.place(('output',))}  output: result `{spec}` has an axis whose size varies with "
                    "the batch\n  → pool it (mean_pool, cls_pool), or list the results to write in "
                    "output.columns"
                )
        return pa.schema([(spec.name, tensors.arrow_type(spec)) for spec in specs.values()])
    for name in declared:
        if name not in specs:
            problems.append(
                f"{job.place(('output', 'columns', name))}  output.columns.{name}: there is no such result"
                f"{_guess(name, list(specs))}; the results are "
                f"{', '.join(str(spec) for spec in specs.values()) or 'none'}"
            )
    return pa.schema([(name, tensors.parse_type(text)) for name, text in declared.items()])


def _output_schema(job: Job, source: pa.Schema, results: pa.Schema | None) -> pa.Schema:
    """Put together the columns of a part. Raises ContractError where a name stands twice."""
    assert results is not None
    fields = [source.field(name).with_nullable(True) for name in job.output.carry]
    fields += [pa.field(name, META_TYPES[name]) for name in job.output.meta]
    fields += list(results)
    if job.errors.on_error == "record":
        fields.append(pa.field("_error", ERROR_TYPE))
    if job.errors.keep_input:
        fields.append(pa.field("_input", pa.string()))
    names = [field.name for field in fields] + [POSITION] * (job.errors.to == "separate")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ContractError(
            f"{job.place(('output', 'carry'))}  output: {', '.join(map(repr, twice))} would stand twice in "
            "the output, as a carried column and as a result",
            hint="rename the result: postprocess: - rename: {from: …, to: …}",
        )
    schema = pa.schema(fields)
    for name in job.output.partition_by:
        _check_folder_column(job, schema.field(name))
    return schema


def _hints(source: pa.Schema, read: Sequence[str], results: pa.Schema) -> tuple[str, ...]:
    """Return what is said of columns that hold lists of bytes."""
    slow = [("input", source.field(name)) for name in read if tensors.is_slow_bytes(source.field(name).type)]
    slow += [("output", field) for field in results if tensors.is_slow_bytes(field.type)]
    return tuple(
        f"{where} column {field.name!r} is {tensors.format_type(field.type)}: about 40 times slower to read "
        f"than the same bytes as {_as_raw(field.type)}"
        for where, field in slow
    )


def _as_raw(type_: pa.DataType) -> str:
    spec = tensors.spec_of("", type_)
    sizes = [size for size in spec.shape[1:] if size is not None]
    whole = len(sizes) == len(spec.shape) - 1
    return f"fixed_size_binary[{int(np.prod(sizes))}]" if whole else "binary"


def _check_folder_column(job: Job, field: pa.Field) -> None:
    """Refuse a partition column whose folders nobody would find. Raises ContractError."""
    place = job.place(("output", "partition_by"))
    if field.name.startswith(("_", ".")):
        raise ContractError(
            f"{place}  output.partition_by: {field.name!r} would make folders that every reader skips",
            hint="call the column otherwise in the input, or partition by another one",
        )
    if (
        pa.types.is_nested(field.type)
        or pa.types.is_binary(field.type)
        or pa.types.is_large_binary(field.type)
    ):
        raise ContractError(
            f"{place}  output.partition_by: a value of {field.name!r} ({field.type}) names no folder",
            hint="partition by a column of texts, whole numbers or dates",
        )


def _guess(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _columns(schema: pa.Schema) -> str:
    """List the columns that are there, as a reader can take them in."""
    shown = [f"{field.name} {tensors.format_type(field.type)}" for field in list(schema)[:30]]
    more = f", and {len(schema) - 30} more" if len(schema) > len(shown) else ""
    return f"there are: {', '.join(shown)}{more}" if shown else "there are no columns"


def _specs(backend: Backend) -> str:
    return ", ".join(str(spec) for spec in backend.inputs)


def _row_bytes(type_: pa.DataType) -> int:
    spec = tensors.spec_of("", type_)
    width = np.dtype(spec.dtype).itemsize if spec.dtype in tensors.NUMERIC else 256
    return int(np.prod([256 if size is None else size for size in spec.shape[1:]])) * width
