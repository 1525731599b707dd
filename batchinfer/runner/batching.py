"""How a worker's batches are cut: by what the job asks for, the model takes, and suits the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batchinfer import tensors
from batchinfer.config import batch_size
from batchinfer.config.fields import is_marked, values_by_key
from batchinfer.errors import ContractError
from batchinfer.loader.batches import BatchPolicy
from batchinfer.loader.packing import packable
from batchinfer.loader.shapes import MAX_SHAPES, bucket_lengths
from batchinfer.options import Code

if TYPE_CHECKING:
    from batchinfer.config import Job
    from batchinfer.data import Packing
    from batchinfer.engine.contract import Contract
    from batchinfer.protocols import Backend


def batch_policy(job: Job, device: str, contract: Contract, backend: Backend) -> BatchPolicy:
    """Return how the batches of a loaded model are cut. Raises ContractError for what it cannot take."""
    by, size = batch_size(
        job, device, ragged=contract.ragged, row_bytes=contract.row_bytes, token_bytes=contract.token_bytes
    )
    asked = job.batching.buckets
    few_shapes = bool(getattr(backend, "few_shapes", False)) if asked == "auto" else asked != "none"
    # Texts have no shape.
    fixed = few_shapes and all(bind.dtype in tensors.NUMERIC for bind in contract.bindings)
    packing = _packing(job, device, contract, backend, by_rows=fixed and by == "rows")
    lengths: tuple[int, ...] = ()
    if fixed and contract.ragged and packing is None:
        count = asked if isinstance(asked, int) else MAX_SHAPES
        lengths = asked if isinstance(asked, tuple) else bucket_lengths(contract.longest, count)
    return BatchPolicy(
        size=size, by=by, bindings=contract.bindings, fixed=fixed, lengths=lengths, packing=packing
    )


def settings_of(policy: BatchPolicy) -> dict[str, str]:
    """Say how batches are cut, in the words of the job file."""
    found = {"batching.by": policy.by, "batching.size": str(policy.size)}
    if policy.packing is not None:
        found["batching.packed"] = "true"
    if policy.lengths:
        found["batching.buckets"] = (
            f"{len(policy.lengths)} lengths from {policy.lengths[0]} to {policy.lengths[-1]}"
        )
    elif policy.fixed:
        found["batching.buckets"] = "one shape"
    return found


def _packing(job: Job, device: str, contract: Contract, backend: Backend, *, by_rows: bool) -> Packing | None:
    """Return how the model takes rows packed; None where they are padded."""
    asked = job.batching.packed
    if asked is False or (asked == "auto" and (not device.startswith("cuda") or _runs_own_code(job))):
        return None
    offer = getattr(backend, "packing", None)
    found: Packing | None = None
    if offer is not None and not by_rows:
        found = offer()
    if found is not None and packable(contract.bindings, contract.encoded, found):
        return found
    if asked == "auto":
        return None
    where = job.place(("batching", "packed"))
    if by_rows:
        raise ContractError(
            f"{where}  batching.packed: a number of rows gives no fixed shape, as a compiled model needs",
            hint="batching: {by: tokens}",
        )
    raise ContractError(
        f"{where}  batching.packed: backend {job.model.backend} cannot take this model's rows packed",
        hint="packed: auto packs where that is possible: transformers encoders that embed, with "
        "inputs_are: tokens; on a GPU in fp16 or bf16",
    )


def _runs_own_code(job: Job) -> bool:
    """Tell whether a postprocess step runs code of the user's, which may look at the model's inputs."""
    return any(
        value and is_marked(field, Code)
        for step in job.postprocess
        for _, field, value in values_by_key(step.options)
    )
