"""Secrets come from the environment: what a job file may not spell out, and what is kept from print."""

from __future__ import annotations

import re

from batchinfer.redact import holds_secret

_SECRET_KEY = re.compile(
    r"(?i)secret|password|passwd|token|credential|authorization|connection_string|sas_|_key$"
)
_NOT_SECRET = frozenset({"anon", "cloud", "google_default", "browser", "cache"})


def secret_problem(key: str | int, text: str) -> str | None:
    """Say why a value of a secret field may not stand in the job file, if it may not."""
    if "${env:" in text:
        return None
    if _SECRET_KEY.search(str(key)) and text and text not in _NOT_SECRET and not _is_file(str(key)):
        return "is a secret, and the job is stored with its output; write ${env:NAME} instead"
    if holds_secret(text):
        return "holds a password or a signature, and the job is stored with its output; write ${env:NAME}"
    return None


def _is_file(key: str) -> bool:
    return key.endswith(("_path", "_file", "_type"))


def path_problem(text: str) -> str | None:
    """Say why a data path may not be used: paths stand in messages, plans and metrics."""
    if holds_secret(text):
        return "holds a password or a signature, and paths are shown and stored; use storage_options"
    return None
