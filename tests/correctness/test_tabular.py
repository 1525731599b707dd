"""336,776 flights through the example's model, held against onnxruntime."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from tests.correctness.conftest import Prepare, Run, apart

LOG = logging.getLogger(__name__)
ALONE = 2_000
"""Flights that onnxruntime scores one at a time; the others all at once."""


@pytest.fixture(scope="module")
def job(prepare: Prepare) -> Path:
    """The example's job file, with its model and data beside it."""
    return prepare("tabular-scoring") / "job.yaml"


@pytest.fixture(scope="module")
def flights(job: Path) -> pa.Table:
    """The input in the order of its files, the month from the folders' names."""
    tables = []
    for file in sorted(job.parent.glob("data/month=*/*.parquet")):
        table = pq.read_table(file, partitioning=None)
        month = int(file.parent.name.removeprefix("month="))
        tables.append(table.append_column("month", pa.array([month] * len(table), pa.int64())))
    return pa.concat_tables(tables)


@pytest.fixture(scope="module")
def names(job: Path) -> list[str]:
    """The columns that the model sees, in its order."""
    return list(yaml.safe_load(job.read_text())["preprocess"][0]["columns"]["columns"])


def test_flights_are_scored_as_by_onnxruntime(
    job: Path, flights: pa.Table, names: list[str], run: Run
) -> None:
    """All 336,776 flights come out in order with every column as it was and the probability that
    onnxruntime gives; the flights that failed are those with a null feature, and only those."""
    carried = flights.column_names
    found = run(job, output__carry=carried, output__partition_by=[])

    assert len(found) == len(flights) == 336_776
    for name in carried:
        assert found[name].combine_chunks().equals(flights[name].combine_chunks()), name
    whole = np.logical_and.reduce([flights[name].is_valid().to_numpy() for name in names])
    assert 0 < np.count_nonzero(~whole) < 10_000
    assert np.array_equal(found["_error"].is_valid().to_numpy(), ~whole)
    assert np.array_equal(found["p_late"].is_valid().to_numpy(), whole)

    features = np.stack([flights[name].filter(pa.array(whole)).to_numpy() for name in names], axis=1)
    wanted = sigmoid(logits(job, features.astype(np.float32)))
    scored = found.filter(pa.array(whole))
    far = apart(scored["p_late"].to_numpy(), wanted)
    LOG.info("max abs %.2e", far)
    assert far < 1e-6
    sure = np.abs(wanted - 0.5) > 1e-6
    assert np.array_equal(scored["late"].to_numpy()[sure], wanted[sure] > 0.5)


def test_a_batch_is_as_good_as_a_flight_alone(
    job: Path, flights: pa.Table, names: list[str], run: Run
) -> None:
    """Flights scored in batches of 999 have the logit that onnxruntime gives for each alone."""
    found = run(
        job,
        input__limit=ALONE,
        batching__size=999,
        postprocess=[],
        output__carry=names,
        output__partition_by=[],
    )
    first = flights.slice(0, ALONE)
    assert found.select(names).equals(first.select(names).combine_chunks())
    good = pc.is_null(found["_error"])
    features = np.stack([first[name].filter(good).to_numpy() for name in names], axis=1).astype(np.float32)
    wanted = np.concatenate([logits(job, features[row : row + 1]) for row in range(len(features))])
    got = found["logit"].filter(good).combine_chunks().flatten().to_numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def logits(job: Path, features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Run the model by hand."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if str(job) not in SESSIONS:
        SESSIONS[str(job)] = onnxruntime.InferenceSession(
            job.parent / "model" / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
    return np.asarray(SESSIONS[str(job)].run(None, {"input": features})[0][:, 0])


SESSIONS: dict[str, Any] = {}


def sigmoid(logit: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return probabilities, in float64."""
    return np.asarray(1 / (1 + np.exp(-logit.astype(np.float64))))
