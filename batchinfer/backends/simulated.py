"""thin"""

from __future__ import annotations
import time
from typing import Literal
from batchinfer.config.sections import ModelOptions
from batchinfer.data import TensorSpec


class O(ModelOptions):
    backend: Literal["simulated"] = "simulated"
    seconds_per_batch: float = 0.0


class SimulatedBackend:
    Options = O

    def __init__(self, o):
        self.o = o
        self.inputs = (TensorSpec("x", "float32", (None,)),)
        self.outputs = (TensorSpec("y", "float32", (None,)),)

    def load(self, device, *, threads):
        pass

    def forward(self, t):
        time.sleep(self.o.seconds_per_batch)
        return {"y": t["x"] * 2}

    def close(self):
        pass
