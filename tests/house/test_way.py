"""The map at the head of `engine/unit.py` names things that exist."""

import importlib
import re

from batchinfer.engine import unit


def test_every_stage_on_the_map_exists() -> None:
    """Each stage of the map is a function or method of the engine or the loader, in order."""
    assert unit.__doc__ is not None
    stages = re.findall(r"^    ([\w.]+) +(?:thread|pool|threads|this)", unit.__doc__, flags=re.MULTILINE)
    assert stages == [
        "read",
        "encode",
        "batches_of",
        "overlap",
        "Gatherer.typed",
        "Spills.add",
        "windows_of",
        "Gatherer.rows",
        "UnitWriter.write",
        "UnitWriter.commit",
    ]
    rooms = [
        importlib.import_module(f"batchinfer.{name}")
        for name in (
            "engine.unit",
            "engine.reading",
            "engine.device",
            "engine.gather",
            "engine.spill",
            "engine.commit",
            "loader.windows",
        )
    ]
    for stage in stages:
        head, *rest = stage.split(".")
        found = [getattr(room, head) for room in rooms if hasattr(room, head)]
        if head == "encode":
            assert "encode" in unit.Way.__annotations__
            continue
        assert found, f"{stage} is on the map and nowhere else"
        for name in rest:
            assert hasattr(found[0], name), stage
