"""What the options classes say about their fields: markers, nested sections, types in plain words."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from batchinfer.config.problems import KeyPath, listed
from batchinfer.options import Content, JobPath, Options, Secret

_PATH = JobPath.__metadata__[0]  # type: ignore[attr-defined]
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts", bool: "true or false"}


def markers(field: FieldInfo) -> list[Any]:
    """Return the metadata of a field, of its union arms and of its items."""
    return [*field.metadata, *_markers(field.annotation)]


def _markers(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    for inner in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _markers(inner)


def is_marked(field: FieldInfo, marker: type) -> bool:
    """Say whether a field, or any part of its type, carries a marker such as `Secret`."""
    return any(isinstance(found, marker) for found in markers(field))


def is_job_path(field: FieldInfo) -> bool:
    """Say whether a field is a path to data (and not to a model or code)."""
    return _PATH in markers(field) and not is_marked(field, Content)


def allows_env(field: FieldInfo) -> bool:
    """Say whether `${env:NAME}` may stand in a field: in secrets, endpoints and data paths."""
    return is_marked(field, Secret) or is_job_path(field)


def affects_output(field: FieldInfo) -> bool:
    """Say whether a field belongs in the fingerprint."""
    extra = field.json_schema_extra
    neutral = isinstance(extra, dict) and extra.get("affects_output") is False
    return not neutral and not is_marked(field, Secret)


def nested_options(annotation: Any) -> type[Options] | None:
    """Return the Options class inside an annotation (`X | None`, `tuple[X, ...]`), if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Options):
        return annotation
    if get_origin(annotation) is Literal:
        return None
    for inner in get_args(annotation):
        found = nested_options(inner)
        if found is not None:
            return found
    return None


def fields_by_key(cls: type[Options]) -> dict[str, FieldInfo]:
    """Return the fields of a class by their keys in the job file: `from` for the attribute `from_`."""
    return {field.alias or name: field for name, field in cls.model_fields.items()}


def values_by_key(options: Options) -> Iterator[tuple[str, FieldInfo, Any]]:
    """Yield (key in the job file, field, value) for every field of some options."""
    for name, field in type(options).model_fields.items():
        yield field.alias or name, field, getattr(options, name)


def leaves(cls: type[Options], value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, FieldInfo, Any]]:
    """Yield the fields given in a mapping, down to those that are no options themselves."""
    fields = fields_by_key(cls)
    for key, item in value.items():
        field = fields.get(key)
        if field is None:
            continue
        nested = nested_options(field.annotation)
        if nested is not None and isinstance(item, Mapping):
            yield from leaves(nested, item, (*path, key))
        elif nested is not None and isinstance(item, list):
            for index, entry in enumerate(item):
                if isinstance(entry, Mapping):
                    yield from leaves(nested, entry, (*path, key, index))
        else:
            yield (*path, key), field, item


def annotation_at(annotation: Any, path: KeyPath) -> Any:
    """Return the type expected at a path below a type, or None where the type does not say."""
    for part in path:
        annotation = _step(annotation, part)
    return annotation


def _step(annotation: Any, part: str | int) -> Any:
    origin, args = get_origin(annotation), get_args(annotation)
    found: Any = None
    if isinstance(annotation, type) and issubclass(annotation, Options):
        field = fields_by_key(annotation).get(str(part))
        found = None if field is None else _whole(field)
    elif origin is Annotated:
        found = _step(args[0], part)
    elif origin in (Union, types.UnionType):
        found = next((inner for arm in args if (inner := _step(arm, part)) is not None), None)
    elif origin is dict and isinstance(part, str):
        found = args[1]
    elif origin in (list, tuple) and isinstance(part, int):
        several = origin is list or args[-1] is Ellipsis
        found = args[0] if several else args[part] if part < len(args) else None
    return found


def _whole(field: FieldInfo) -> Any:
    """Return a field's type with its constraints."""
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return annotation


def arms(annotation: Any) -> list[Any]:
    """Return the alternatives of a union, without None; of anything else, itself."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for arm in get_args(annotation) for found in arms(arm) if arm is not type(None)]
    return [annotation]


def plain(annotation: Any) -> Any:
    """Return a type without its constraints."""
    return plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def literals(annotation: Any) -> list[Any]:
    """Return the words that are allowed under a type."""
    found = [arm for arm in arms(annotation) if get_origin(plain(arm)) is Literal]
    return [value for arm in found for value in get_args(plain(arm))]


def describe(annotation: Any) -> str:
    """Return a type in the words of YAML: `'auto' or a whole number of at least 1`."""
    words = [f"'{value}'" if isinstance(value, str) else str(value) for value in literals(annotation)]
    others = [arm for arm in arms(annotation) if get_origin(plain(arm)) is not Literal]
    return listed([*words, *dict.fromkeys(_describe(arm) for arm in others)])


def _describe(arm: Any) -> str:
    base, limits = plain(arm), _limits(arm)
    origin = get_origin(base)
    if origin in (list, tuple):
        inner = plain(get_args(base)[0]) if get_args(base) else str
        items = describe(inner) if literals(inner) else _PLURALS.get(inner)
        word = f"a list of {items}" if items else "a list"
        if origin is tuple and get_args(base)[-1] is not Ellipsis:
            word = f"a list of {len(get_args(base))} {items or 'values'}"
    elif origin in (Union, types.UnionType):
        word = describe(base)
    elif origin is dict or nested_options(base):
        word = "a mapping"
    else:
        word = _WORDS.get(base, "another value")
    return f"{word} {limits}" if limits else word


def _limits(annotation: Any) -> str:
    """Return the constraints of a type in words, such as `of at least 1 and at most 9`."""
    found: list[str] = []
    for constraint in _constraints(annotation):
        match constraint:
            case Ge(ge=limit):
                found.append(f"of at least {limit}")
            case Gt(gt=limit):
                found.append(f"above {limit}")
            case Le(le=limit):
                found.append(f"of at most {limit}")
            case Lt(lt=limit):
                found.append(f"below {limit}")
            case MinLen(min_length=limit):
                found.append(f"of length {limit} or more")
            case MaxLen(max_length=limit):
                found.append(f"of length {limit} or less")
            case _ if getattr(constraint, "pattern", None):
                found.append(f"of the form `{constraint.pattern}`")
            case _:
                pass
    return listed(found, "and") if found else ""


def _constraints(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is not Annotated:
        return
    yield from _constraints(get_args(annotation)[0])
    for constraint in annotation.__metadata__:
        if isinstance(constraint, FieldInfo):
            yield from constraint.metadata
        else:
            yield constraint
