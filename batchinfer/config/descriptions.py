"""What stands below the fields of an options class, as their descriptions: read where somebody asks for
the schema, and not by every run."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise

from batchinfer.config.fields import nested_options
from batchinfer.options import Options


def describe_fields(cls: type[Options]) -> None:
    """Give the fields of a class, and of the classes inside it, the docstrings below them."""
    docstrings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Options) and base is not Options:
            docstrings.update(_docstrings(base))
    for name, field in cls.model_fields.items():
        if (nested := nested_options(field.annotation)) is not None:
            describe_fields(nested)
        if field.description is None:
            field.description = docstrings.get(name)
    cls.model_rebuild(force=True)


def _docstrings(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the names of a class's own fields and the text below each; nothing where its source is gone."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return
    (parsed,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(parsed, ast.ClassDef)
    for field, below in pairwise(parsed.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, inspect.cleandoc(text)
            case _:
                pass
