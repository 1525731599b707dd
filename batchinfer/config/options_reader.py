"""One section of the document to one options instance: environment, types, code, secrets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from batchinfer import registry
from batchinfer.config import error_section, sections
from batchinfer.config.environment import Environment
from batchinfer.config.fields import fields_by_key
from batchinfer.config.limits import LimitsOptions
from batchinfer.config.problems import KeyPath, Problems, quoted
from batchinfer.config.wording import Section, explain, shown
from batchinfer.errors import BatchinferError
from batchinfer.options import Options

Guess = Callable[[Mapping[str, Any], str], str]

_HOMES: dict[str, type[Options]] = {
    "batching": sections.BatchingOptions,
    "checkpoint": sections.CheckpointOptions,
    "compute": sections.ComputeOptions,
    "errors": error_section.ErrorsOptions,
    "input": sections.InputOptions,
    "model": sections.ModelOptions,
    "limits": LimitsOptions,
    "observe": sections.ObserveOptions,
    "output": sections.OutputOptions,
}

_OTHER_STEPS = {
    "preprocessors": ("postprocessors", "postprocess"),
    "postprocessors": ("preprocessors", "preprocess"),
}


class OptionsReader:
    """Reads sections of one document and records what is wrong with them."""

    def __init__(self, problems: Problems, *, root: str, written: Mapping[KeyPath, str]) -> None:
        self.problems = problems
        self.root = root
        self.written = written
        self.homes: dict[str, list[str]] = {}
        for section, cls in _HOMES.items():
            for key in fields_by_key(cls):
                self.homes.setdefault(key, []).append(f"{section}.{key}")

    def section(self, cls: type[Options], document: Mapping[str, Any], name: str) -> Options | None:
        """Read a section whose class is fixed; an absent one has its defaults."""
        return self.read(cls, document.get(name), (name,))

    def component(
        self, kind: str, document: Mapping[str, Any], name: str, selector: str, guess: Guess
    ) -> Options | None:
        """Read a section whose class is chosen by one of its keys, or guessed from the others."""
        if name not in document:
            self.problems.add((name,), "is required")
            return None
        value = document[name]
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.problems.add((name,), f"must be a mapping, got {shown(value)}")
            return None
        chosen = value.get(selector)
        if chosen is None:
            try:
                chosen = guess(value, self.root)
            except ValueError as error:
                self.problems.add((name, selector), str(error))
                return None
        if not isinstance(chosen, str):
            words = ", ".join(registry.names(kind))
            message = f"must be one of {words}, got {shown(chosen, self.written.get((name, selector)))}"
            self.problems.add((name, selector), message)
            return None
        component = self.load(kind, chosen, (name, selector))
        if component is None:
            return None
        return self.read(component.Options, {**value, selector: chosen}, (name,))

    def load(self, kind: str, name: str, path: KeyPath) -> Any:
        """Return a registered class, or record why there is none."""
        try:
            return registry.load(kind, name)
        except BatchinferError as error:
            elsewhere, section = _OTHER_STEPS.get(kind, (kind, ""))
            home = f"; it is a step of `{section}`" if name in registry.names(elsewhere) else ""
            self.problems.add(path, f"{error.message}{home}")
        except ImportError as error:
            self.problems.add(path, f"{quoted(name)} cannot be imported: {error}")
        return None

    def read(self, cls: type[Options], value: Any, path: KeyPath) -> Options | None:
        """Check one mapping against its class. None where a problem was recorded."""
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            self.problems.add(path, f"must be a mapping, got {shown(value, self.written.get(path))}")
            return None
        before = len(self.problems.found)
        environment = Environment(cls, value, path, self.problems)
        ready = environment.put(value, path, self.root)
        # Through JSON: lists may become tuples there, while texts still do not become numbers.
        try:
            options = cls.model_validate_json(json.dumps(ready), context={"root": self.root})
        except ValidationError as error:
            self._explain(error, cls, ready, path, environment=environment)
            return None
        except BatchinferError as error:
            self.problems.add(path, environment.scrub(error.message))
            return None
        return options if len(self.problems.found) == before else None

    def _explain(
        self,
        error: ValidationError,
        cls: type[Options],
        value: Mapping[str, Any],
        path: KeyPath,
        *,
        environment: Environment,
    ) -> None:
        """Record what pydantic found, once for each key that has no problem yet."""
        known = {found[1] for found in self.problems.found}
        size = len(path)
        section = Section(
            cls=cls,
            value=value,
            written={at[size:]: text for at, text in self.written.items() if at[:size] == path},
            homes=self.homes,
            hidden=frozenset(at[size:] for at in environment.secret_paths()),
        )
        for below, message in explain(error, section):
            # A value that was refused before, such as an alias, is not what the user wrote.
            if (*path, *below) not in known:
                self.problems.add((*path, *below), environment.scrub(message))
