"""`${env:NAME}` put into the values of one section, only where secrets and places of data stand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from batchinfer.config.credentials import keep_secret, path_problem, secret_problem
from batchinfer.config.entries import entry_problem
from batchinfer.config.fields import allows_env, is_job_path, is_marked, leaves
from batchinfer.config.problems import KeyPath, Problems
from batchinfer.config.scalars import checked
from batchinfer.config.substitution import substitute_env
from batchinfer.options import Code, Options, Secret


class Environment:
    """Puts variables into a section, and remembers whose values must not be printed."""

    def __init__(
        self, cls: type[Options], value: Mapping[str, Any], path: KeyPath, problems: Problems
    ) -> None:
        self.fields = {at: field for at, field, _ in leaves(cls, value, path)}
        self.problems = problems
        self.secrets: dict[str, str] = {}

    def secret_paths(self) -> list[KeyPath]:
        """Return the paths of the given fields whose values are never shown."""
        return [at for at, field in self.fields.items() if is_marked(field, Secret)]

    def put(self, node: Any, at: KeyPath, root: str) -> Any:
        """Return a value with its variables put in; what may not stand there is recorded."""
        if isinstance(node, Mapping):
            return {key: self.put(item, (*at, key), root) for key, item in node.items()}
        if isinstance(node, list):
            return [self.put(item, (*at, index), root) for index, item in enumerate(node)]
        return self._text(node, at, root) if isinstance(node, str) else node

    def _text(self, text: str, at: KeyPath, root: str) -> str:
        field = self._field(at)
        if field is None:
            # An unknown key: reported as such, and nobody reads its value.
            return text
        # Judged before its variables are in, so that a message can quote what stands in the file.
        if is_marked(field, Secret):
            self._record(at, secret_problem(at[-1], text))
        if is_marked(field, Code) and "${env:" not in text:
            self._record(at, entry_problem(text, root))
        allowed = allows_env(field)
        used: list[str] = []

        def put(name: str) -> str:
            used.append(self._variable(name, at, allowed=allowed))
            return used[-1]

        ready = substitute_env(text, put)
        if used and is_marked(field, Secret):
            for value in (*used, ready):
                keep_secret(at[-1], value)
        if is_job_path(field):
            self._record(at, path_problem(ready))
        return ready

    def _field(self, at: KeyPath) -> FieldInfo | None:
        """Return the field that a value stands in."""
        sizes = range(len(at), 0, -1)
        return next((self.fields[at[:size]] for size in sizes if at[:size] in self.fields), None)

    def _variable(self, name: str, at: KeyPath, *, allowed: bool) -> str:
        if not allowed:
            places = "storage_options, endpoints and data paths"
            self._record(at, f"${{env:{name}}} may stand in {places} only; use ${{param:NAME}} here")
        elif name not in os.environ:
            self._record(at, f"the environment variable {name} is not set")
        else:
            self.secrets[name] = os.environ[name]
            try:
                return checked(os.environ[name])
            except ValueError:
                self._record(at, f"the environment variable {name} is not UTF-8 text")
        return ""

    def _record(self, at: KeyPath, message: str | None) -> None:
        if message is not None:
            self.problems.add(at, self.scrub(message))

    def scrub(self, message: str) -> str:
        """Return a message in which the names of variables stand for their values."""
        for name, value in self.secrets.items():
            if value:
                message = message.replace(value, f"${{env:{name}}}")
        return message
