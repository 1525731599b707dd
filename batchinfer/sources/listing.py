"""What `input.path` stands for: one listing per pattern, no file opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from batchinfer.data import Block, Entry, Shard
from batchinfer.errors import NoInputError
from batchinfer.sources.hive import key_of, partition_values
from batchinfer.storage import Store, open_store, split_glob

if TYPE_CHECKING:
    from batchinfer.sources.options import SourceOptions


def store_of(options: SourceOptions, uri: str | None = None) -> Store:
    """Return the store of the input (of one of its files, where paths are on several)."""
    return open_store(uri or options.patterns[0], options.storage_options)


def list_inputs(options: SourceOptions, suffixes: Sequence[str] | None) -> list[Entry]:
    """Return the input's files in order, each once. A folder gives only files of known suffixes.

    Raises NoInputError that says what was there instead.
    """
    found: dict[str, Entry] = {}
    for pattern in options.patterns:
        fixed, rest = split_glob(pattern)
        entries = store_of(options, pattern).glob(pattern)
        named = bool(rest) or (len(entries) == 1 and entries[0].uri == fixed)
        matching = [entry for entry in entries if named or _has_suffix(entry.uri, suffixes)]
        if not matching:
            raise _nothing(options, pattern, entries, suffixes)
        found.update({entry.uri: entry for entry in matching})
    return sorted(found.values(), key=lambda entry: entry.uri)


def shard_of(
    options: SourceOptions, entry: Entry, *, index: int, blocks: tuple[Block, ...], named: str | None = None
) -> Shard:
    """Describe a file; its key and partitions come from its path (or from `named`, for a group)."""
    key = key_of(named or entry.uri, options.patterns)
    return Shard(
        index=index,
        uri=entry.uri,
        key=key,
        size_bytes=entry.size_bytes,
        version=entry.version,
        blocks=blocks,
        partition=partition_values(key) if options.partitioning == "hive" else {},
    )


def _has_suffix(uri: str, suffixes: Sequence[str] | None) -> bool:
    return suffixes is None or uri.lower().endswith(tuple(suffixes))


def _nothing(
    options: SourceOptions, pattern: str, entries: Sequence[Entry], suffixes: Sequence[str] | None
) -> NoInputError:
    if entries:
        hint = (
            f"the folder holds {len(entries)} files, such as {entries[0].uri.rpartition('/')[2]!r}, none of "
            f"them {' or '.join(suffixes or ())}: set input.format, or name the files with a glob"
        )
    else:
        fixed = split_glob(pattern)[0]
        near = store_of(options, pattern).entries(fixed)
        hint = f"below {fixed} there are {len(near)} files" if near else f"nothing is below {fixed}"
    return NoInputError(f"input.path matches no file: {pattern}", hint=hint)
