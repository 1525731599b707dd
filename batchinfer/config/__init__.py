"""The job file: YAML in, one checked and frozen tree out, every problem at once."""

from __future__ import annotations

from batchinfer.config.files import check_files
from batchinfer.config.fingerprints import Fingerprint, diff, fingerprint
from batchinfer.config.hashing import content_sha256
from batchinfer.config.job import Job, Step
from batchinfer.config.load import load_job
from batchinfer.config.machine import (
    Machine,
    Tuned,
    batch_size,
    resolve,
    settled,
    usable_cores,
    window_rows,
)
from batchinfer.config.schema import json_schema

__all__ = [
    "Fingerprint",
    "Job",
    "Machine",
    "Step",
    "Tuned",
    "batch_size",
    "check_files",
    "content_sha256",
    "diff",
    "fingerprint",
    "json_schema",
    "load_job",
    "resolve",
    "settled",
    "usable_cores",
    "window_rows",
]
