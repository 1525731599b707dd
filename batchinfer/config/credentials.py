"""Secrets come from the environment: what a job file may not spell out, and what is kept from print."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

_SECRET_KEY = re.compile(
    r"(?i)secret|password|passwd|token|credential|authorization|connection_string|sas_|_key$"
)
_NOT_SECRET = frozenset({"anon", "cloud", "google_default", "browser", "cache"})
_SIGNED = frozenset(
    {"sig", "signature", "x-amz-signature", "x-amz-security-token", "x-goog-signature", "token"}
)


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


def holds_secret(url: str) -> bool:
    """Say whether a URL carries a password or a signature."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query)
    except ValueError:
        # Nothing that cannot be taken apart is worth printing.
        return "://" in url and "@" in url
    if not parts.scheme or not parts.netloc:
        return False
    return parts.password is not None or any(key.lower() in _SIGNED for key, _ in query)


def redact(url: str) -> str:
    """Return a URL without its password and its signature, for messages."""
    if not holds_secret(url):
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user = "***@" if "@" in parts.netloc else ""
    query = "?***" if parts.query else ""
    return f"{parts.scheme}://{user}{host}{parts.path}{query}"
