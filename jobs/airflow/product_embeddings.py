"""A DAG that runs a batchinfer job every night, in a process of its own, by its command line.

Put this file into the DAG folder (it was tried with Airflow 3.3). `batchinfer` may live in an
environment of its own: its exit code is all that Airflow needs to know. Retrying is always safe: the
same command goes on from what is committed, also while an earlier attempt still runs somewhere.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

COMMAND = os.environ.get("BATCHINFER_COMMAND", "batchinfer")
JOB_FILE = os.environ.get("BATCHINFER_JOB", "/opt/jobs/product-embeddings/job.yaml")

SKIP = 99
NEVER_RETRY = {
    2: "the command line is wrong",
    3: "too many rows failed",
    65: "an input is corrupt, changed or drifted",
    66: "there is no input",
    67: "the output belongs to a different job",
    73: "the output store cannot commit safely",
    76: "some rows kill whoever touches them",
    77: "permission denied",
    78: "the job file is wrong",
}
"""Exit codes after which another attempt would end in the same way. All others are retried."""


class BatchinferOperator(BaseOperator):
    """Runs `batchinfer run JOB`; skips where nothing was left to do, and fails for good where it must.

    `job_params` fill the `${param:NAME}` of the job file; both are templated. Killing the task sends
    SIGTERM: the run commits what it has computed, and ends.
    """

    template_fields = ("job", "job_params")

    def __init__(
        self, *, job: str, job_params: dict[str, str] | None = None, command: str = COMMAND, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.job_params = job_params or {}
        self.command = command
        self._process = SubprocessHook()

    def execute(self, context: Any) -> None:
        """Run the job, and say what its exit code means. Its log lines become the task's."""
        del context
        params = [part for name, value in self.job_params.items() for part in ("--param", f"{name}={value}")]
        code = self._process.run_command(
            [self.command, "run", self.job, *params, "--exit-empty", str(SKIP)]
        ).exit_code
        if code == SKIP:
            raise AirflowSkipException("nothing was left to do")
        if code in NEVER_RETRY:
            raise AirflowFailException(f"batchinfer exited with {code}: {NEVER_RETRY[code]}")
        if code:
            raise AirflowException(f"batchinfer exited with {code}: what is committed is kept, retry")

    def on_kill(self) -> None:
        """Ask the run to end."""
        self._process.send_sigterm()


with DAG(
    dag_id="product_embeddings",
    schedule="0 3 * * *",
    start_date=datetime(2026, 10, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={
        "retries": 5,
        "retry_delay": timedelta(minutes=2),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=30),
        "execution_timeout": timedelta(hours=6),
    },
) as dag:
    BatchinferOperator(task_id="embed", job=JOB_FILE, job_params={"day": "{{ ds }}"})
