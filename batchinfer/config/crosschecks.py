"""What no section can see alone: an output inside its own input, a column named twice, a password in the
open."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batchinfer.config.problems import KeyPath, Problems, listed, quoted
from batchinfer.config.sections import InputOptions, ObserveOptions, OutputOptions
from batchinfer.data import Entry
from batchinfer.storage.globs import select, split_glob


def check_together(sections: Mapping[str, Any], problems: Problems) -> None:
    """Record what is wrong between sections; a section that could not be read is left out."""
    source, output = sections["input"], sections["output"]
    if isinstance(output, OutputOptions):
        _check_columns(output, problems)
        if _scheme(output.path) == "file" and Path(_normal(output.path)).is_file():
            problems.add(("output", "path"), "is a file; an output is a folder")
        if isinstance(source, InputOptions):
            _check_paths(source, output, problems)
    if isinstance(sections["observe"], ObserveOptions):
        _check_pushgateway(sections["observe"], problems)


def _check_pushgateway(observe: ObserveOptions, problems: Problems) -> None:
    """Refuse to send a password that anybody on the way could read."""
    gateway = observe.pushgateway
    if gateway is None:
        return
    try:
        url = urlsplit(gateway.url)
    except ValueError:
        return  # whoever pushes will refuse it
    if url.scheme == "http" and gateway.has_login and not _is_this_machine(url.hostname or ""):
        what = "token" if gateway.token else "password"
        message = f"would send its {what} over http, where it can be read on the way; use https://"
        problems.add(("observe", "pushgateway", "url"), message)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _check_columns(output: OutputOptions, problems: Problems) -> None:
    from batchinfer.tensors import parse_type

    for name, text in (output.columns or {}).items():
        path: KeyPath = ("output", "columns", name)
        if name in output.carry:
            problems.add(path, "is also carried from the input; give the result another name")
        if name in output.meta or name == "_error":
            problems.add(path, f"{quoted(name)} is a column that batchinfer writes; use another name")
        try:
            parse_type(text)
        except ValueError as error:
            problems.add(path, str(error))
    for index, name in enumerate(output.partition_by):
        if name.startswith(("_", ".")):
            message = f"{quoted(name)} would make folders that every reader skips; rename the column"
            problems.add(("output", "partition_by", index), message)
    written = {*output.meta, "_error"} & set(output.carry)
    if written:
        message = f"{listed(map(quoted, sorted(written)), 'and')} would be written twice"
        problems.add(("output", "carry"), message)


def _check_paths(source: InputOptions, output: OutputOptions, problems: Problems) -> None:
    several = isinstance(source.path, tuple)
    paths = source.path if isinstance(source.path, tuple) else (source.path,)
    target = _normal(output.path)
    for index, path in enumerate(paths):
        if _scheme(path) != _scheme(output.path):
            continue
        where = f"input.path[{index}]" if several else "input.path"
        pattern = _normal(path)
        if _inside(split_glob(pattern)[0], target):
            same = _inside(target, split_glob(pattern)[0])
            how = "is the folder of" if same else "contains"
            problems.add(("output", "path"), f"{how} `{where}`: a rerun would read its own output")
        elif select(_samples(target, output.format), pattern):
            problems.add(("output", "path"), f"lies in `{where}`: a rerun would read its own output")


def _samples(target: str, suffix: str) -> list[Entry]:
    """Return files as an output folder will hold them."""
    names = (f"part-00000-of-00001-00000000.{suffix}", f"key=value/part-00000-of-00001-00000000.{suffix}")
    return [Entry(uri=f"{target}/{name}", size_bytes=0, version="") for name in names]


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _scheme(path: str) -> str:
    scheme, sign, _ = path.partition("://")
    return scheme.lower() if sign else "file"


def _normal(path: str) -> str:
    """Return a path without dots, links and a trailing slash, so that two spellings compare equal."""
    if _scheme(path) != "file":
        return path.rstrip("/")
    # Links are followed in the fixed part only: a glob may match nothing yet.
    fixed, rest = split_glob(path.removeprefix("file://"))
    real = os.path.realpath(fixed)
    return f"{real.rstrip('/')}/{rest}" if rest else real
