"""One section of the document to one options instance: environment, types, code, secrets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from batchinfer import registry
from batchinfer.config import sections
from batchinfer.config.entries import entry_problem
from batchinfer.config.fields import allows_env, is_job_path, is_marked, leaves
from batchinfer.config.problems import KeyPath, Problems, quoted
from batchinfer.config.secrets import path_problem, secret_problem
from batchinfer.config.substitution import substitute_env
from batchinfer.config.wording import explain, shown
from batchinfer.errors import BatchinferError
from batchinfer.options import Code, Options, Secret

Guess = Callable[[Mapping[str, Any], str], str]

_HOMES = {
    "batching": sections.BatchingOptions,
    "checkpoint": sections.CheckpointOptions,
    "compute": sections.ComputeOptions,
    "errors": sections.ErrorsOptions,
    "input": sections.InputOptions,
    "model": sections.ModelOptions,
    "observe": sections.ObserveOptions,
    "output": sections.OutputOptions,
}


class OptionsReader:
    """Reads sections of one document and records what is wrong with them."""

    def __init__(self, problems: Problems, *, root: str, written: Mapping[KeyPath, str]) -> None:
        self.problems = problems
        self.root = root
        self.written = written
        self.homes: dict[str, list[str]] = {}
        for section, cls in _HOMES.items():
            for key in cls.model_fields:
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
            self.problems.add(path, error.message)
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
        ready, secrets = self._interpolate(cls, value, path)
        skipped = {found[1] for found in self.problems.found[before:]}
        try:
            options = cls.model_validate_json(json.dumps(ready), context={"root": self.root})
        except ValidationError as error:
            self._explain(error, cls, ready, path, secrets, skipped)
            return None
        except BatchinferError as error:
            self.problems.add(path, _scrubbed(error.message, secrets))
            return None
        return options if len(self.problems.found) == before else None

    def _interpolate(
        self, cls: type[Options], value: Mapping[str, Any], path: KeyPath
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the mapping with its environment variables put in, and the variables' values."""
        secrets: dict[str, str] = {}
        ready: dict[str, Any] = json.loads(json.dumps(value))
        fields = {at: field for at, field, _ in leaves(cls, value, path)}

        def put(node: Any, at: KeyPath) -> Any:
            if isinstance(node, dict):
                return {key: put(item, (*at, key)) for key, item in node.items()}
            if isinstance(node, list):
                return [put(item, (*at, index)) for index, item in enumerate(node)]
            if not isinstance(node, str):
                return node
            field = next((fields[at[:size]] for size in range(len(at), 0, -1) if at[:size] in fields), None)
            if field is not None and is_marked(field, Secret) and (wrong := secret_problem(at[-1], node)):
                self.problems.add(at, wrong)
            if field is not None and is_marked(field, Code) and (wrong := entry_problem(node, self.root)):
                self.problems.add(at, wrong)
            text = substitute_env(node, lambda name: lookup(name, at, allowed=field is None or allows_env(field)))
            if field is not None and is_job_path(field) and (wrong := path_problem(text)):
                self.problems.add(at, wrong)
            return text

        def lookup(name: str, at: KeyPath, *, allowed: bool) -> str:
            if not allowed:
                message = "${env:...} may stand in storage_options, endpoints and data paths only; use ${param:NAME}"
                self.problems.add(at, message)
            elif name not in os.environ:
                self.problems.add(at, f"the environment variable {name} is not set")
            else:
                secrets[name] = os.environ[name]
            return secrets.get(name, "")

        return put(ready, path), secrets

    def _explain(
        self,
        error: ValidationError,
        cls: type[Options],
        value: Mapping[str, Any],
        path: KeyPath,
        secrets: Mapping[str, str],
        skipped: set[KeyPath],
    ) -> None:
        """Record what pydantic found, leaving out what was recorded before it ran."""
        size = len(path)
        written = {at[size:]: text for at, text in self.written.items() if at[:size] == path}
        for below, message in explain(error, cls, value, written=written, homes=self.homes):
            if (*path, *below) not in skipped:
                self.problems.add((*path, *below), _scrubbed(message, secrets))


def _scrubbed(message: str, secrets: Mapping[str, str]) -> str:
    """Return a message in which the names of variables stand for their values."""
    for name, value in secrets.items():
        if value:
            message = message.replace(value, f"${{env:{name}}}")
    return message
