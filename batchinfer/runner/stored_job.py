"""The job as its output remembers it, beside the plan: so that failed rows can be done again from there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from batchinfer.config import Job
from batchinfer.engine.publish import create_once
from batchinfer.errors import DataError, UsageError
from batchinfer.runner.output import control, read_control
from batchinfer.storage import ObjectMissing

if TYPE_CHECKING:
    from batchinfer.runner.plan import Plan
    from batchinfer.storage import Store


def store_job(store: Store, root: str, plan: Plan, job: Job) -> None:
    """Write down the job, without any secret and without what `auto` became on this machine. Whoever is
    first does: others may differ in what changes nothing."""
    kept = {key: value for key, value in job.to_message().items() if key in {"document", "root", "params"}}
    create_once(store, _uri(root, plan), control(job=kept))


def read_job(store: Store, root: str, plan: Plan) -> Job:
    """Return the job that a plan was made for. Raises UsageError where it is not known, or writes elsewhere
    now; JobFileError where it does not hold here."""
    name_it = "name the job file in place of its output: batchinfer retry job.yaml"
    try:
        kept = read_control(store, _uri(root, plan), "stored job", "job")["job"]
        message = {**kept, "origin": "the stored job", "places": [], "place_labels": [], "resolved": {}}
        job = Job.from_message(json.loads(json.dumps(message)))
    except ObjectMissing as error:
        raise UsageError("this output does not know its job", hint=name_it) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError("the stored job is damaged", where=_uri(root, plan), hint=name_it) from error
    if job.output.path.rstrip("/") != root.rstrip("/"):
        raise UsageError(f"the job of this output writes to {job.output.path} now", hint=name_it)
    return job


def _uri(root: str, plan: Plan) -> str:
    return f"{root.rstrip('/')}/_batchinfer/{plan.plan8}/job.json"
