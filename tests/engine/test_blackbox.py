"""What a dying process leaves behind of what it had in hand."""

from __future__ import annotations

import os

from batchinfer.engine.blackbox import BlackBox, Entry


def test_what_is_noted_is_read_by_another() -> None:
    """Entries are there until they are cleared; as many as one likes may be put, and those for which there
    is no room are left out, not refused."""
    fd = BlackBox.create()
    writer, reader = BlackBox(fd), BlackBox(fd)
    os.close(fd)
    slots = [writer.put(Entry("model", 1, at, 0, 2)) for at in range(5000)]
    seen = reader.read()
    assert len(seen) >= 1000
    assert {entry.key for entry in seen} < set(range(5000))
    for slot in slots:
        writer.clear(slot)
    assert reader.read() == []
    writer.put(Entry("postprocess", 3, 4, 5, 6, 7))
    assert reader.read() == [Entry("postprocess", 3, 4, 5, 6, 7)]
    assert reader.passed() == {"model"}
    writer.clear(writer.put(Entry("preprocess", 0, 0, 0, 0)))
    assert reader.passed() == {"model"}, "none of its rows is no proof"
    writer.close()
    reader.close()
