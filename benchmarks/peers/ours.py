"""batchinfer: the command line itself, with one listener more, which notes the first batch.

Settings: keys of the job file (`batching.size`), on top of the job that this file writes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import works


def job(order: works.Order) -> dict[str, Any]:
    """Return the job file."""
    folder = order.folder
    steps: dict[str, dict[str, Any]] = {
        "text": {
            "preprocess": [
                {
                    "tokenize": {
                        "column": "text",
                        "tokenizer": f"{folder}/model/tokenizer.json",
                        "max_length": works.MAX_TOKENS,
                    }
                }
            ],
            "model": {"path": f"{folder}/model/model.onnx"},
            "postprocess": [{"mean_pool": {"from": "last_hidden_state", "to": "y", "normalize": True}}],
        },
        "images": {
            "preprocess": [
                {
                    "image": {
                        "column": "jpeg",
                        "to": "pixels",
                        "resize": "stretch",
                        "dtype": "uint8",
                        "layout": "hwc",
                    }
                }
            ],
            "model": {"path": f"{folder}/model.onnx"},
        },
        "table": {
            "preprocess": [{"columns": {"columns": list(works.FEATURES), "to": "features"}}],
            "model": {"path": f"{folder}/model.onnx"},
        },
    }
    device = {
        "model": {
            "backend": "python",
            "entry": "works:Device",
            "args": {"seconds": works.SERVICE_S.get(order.work, 0)},
        },
        "batching": {"size": 1_024},
    }
    return {
        "job": f"versus-{order.work}",
        "input": {"path": f"{folder}/in"},
        **steps.get(order.work, device),
        "output": {"path": order.out, "carry": ["id"], "compression": "snappy"},
    }


class FirstBatch:
    """Hears the run's events, and notes the first batch of each worker; the harness needs no more.

    Where preparing rows is much of the work, what counts is when a worker begins to read.
    """

    def __init__(self, work: str) -> None:
        self._heard: set[int] = set()
        self._from_ready = work in {"images", "table"}

    def on_event(self, event: Any) -> None:
        """Note a batch from its end and how long it took."""
        if type(event).__name__ == "WorkerReady" and self._from_ready:
            works.begun()
        if type(event).__name__ == "BatchFinished" and event.worker not in self._heard:
            self._heard.add(event.worker)
            now = time.time()
            works.stamp(now - event.compute_s, now, event.rows)

    def close(self) -> None:
        """Do nothing."""


def main() -> None:
    """Write the job file and run it."""
    order = works.order()
    path = Path(order.out).with_suffix(".yaml")
    path.write_text(json.dumps(job(order), indent=1))

    from batchinfer import cli, telemetry

    made = telemetry.make_observers
    telemetry.make_observers = lambda *given, **keys: [*made(*given, **keys), FirstBatch(order.work)]
    sets = [text for key, value in order.settings.items() for text in ("--set", f"{key}={json.dumps(value)}")]
    sys.argv = ["batchinfer", "run", str(path), *sets]
    cli.main()


if __name__ == "__main__":
    main()
