"""Secrets come from the environment: what a job file may not spell out, and what is kept from print."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from batchinfer.redact import holds_secret, remember

_SECRET_KEY = re.compile(
    r"(?i)secret|password|passwd|token|credential|authorization|connection_string|sas_|_key$"
)
_NOT_SECRET = frozenset({"anon", "cloud", "google_default", "browser", "cache"})

_PLACES = frozenset(
    {
        *("endpoint", "endpoint_url", "base_url", "url", "proxy_url"),
        *("region", "region_name", "account_name", "project", "instance", "user"),
    }
)
"""Keys beside the secrets that are none: without them, nobody could tell which server did not answer."""


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


def keep_secret(key: str | int, value: str) -> None:
    """Have a value from the environment hidden from messages; of a URL, its password."""
    if "://" not in value:
        if str(key) not in _PLACES:
            remember(value)
        return
    try:
        password = urlsplit(value).password or ""
    except ValueError:
        password = value
    remember(password)
    remember(unquote(password))


def path_problem(text: str) -> str | None:
    """Say why a data path may not be used: paths stand in messages, plans and metrics."""
    if holds_secret(text):
        return "holds a password or a signature, and paths are shown and stored; use storage_options"
    return None
