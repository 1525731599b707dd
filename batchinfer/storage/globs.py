"""Globs over the keys of a store: `*` and `?` stay inside a folder, `**` crosses folders."""

from __future__ import annotations

import re
from collections.abc import Iterable

from batchinfer.data import Entry

_MAGIC = re.compile(r"[*?\[]")


def split_glob(path: str) -> tuple[str, str]:
    """Split a path into its fixed folder and the rest: `s3://b/a/dt=*/*.pq` -> `s3://b/a`, `dt=*/*.pq`.

    Without magic the rest is empty.
    """
    found = _MAGIC.search(path)
    if found is None:
        return path.rstrip("/") or "/", ""
    head, _, _ = path[: found.start()].rpartition("/")
    fixed = head or ("/" if path.startswith("/") else ".")
    return fixed, path[len(head) + 1 if head or path.startswith("/") else 0 :]


def select(entries: Iterable[Entry], pattern: str) -> list[Entry]:
    """Return the entries that a file name, a folder or a glob stands for, hidden names left out."""
    fixed, rest = split_glob(pattern)
    matches = re.compile(_translate(rest)).fullmatch if rest else None
    chosen = []
    for entry in entries:
        if entry.uri == fixed and matches is None:
            chosen.append(entry)
            continue
        if not entry.uri.startswith(fixed.rstrip("/") + "/"):
            continue
        below = entry.uri[len(fixed.rstrip("/")) + 1 :]
        hidden = any(part.startswith(("_", ".")) for part in below.split("/"))
        if not hidden and (matches is None or matches(below)):
            chosen.append(entry)
    return sorted(chosen, key=lambda entry: entry.uri)


def _translate(glob: str) -> str:
    """Return the regular expression for a glob, segment by segment."""
    out, at = [], 0
    while at < len(glob):
        char = glob[at]
        if glob.startswith("**/", at):
            out.append("(?:[^/]+/)*")
            at += 3
        elif glob.startswith("**", at):
            out.append(".*")
            at += 2
        elif char == "*":
            out.append("[^/]*")
            at += 1
        elif char == "?":
            out.append("[^/]")
            at += 1
        elif char == "[" and (end := glob.find("]", at + 2)) != -1:
            inside = glob[at + 1 : end].replace("\\", "\\\\")
            out.append(f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]")
            at = end + 1
        else:
            out.append(re.escape(char))
            at += 1
    return "".join(out)
