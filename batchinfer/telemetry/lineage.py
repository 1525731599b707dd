"""Tells a lineage service which data a run made of which: START, then COMPLETE, ABORT or FAIL (OpenLineage).

Job and run are OpenLineage's; a dataset is a path of the job, named as its naming rules say: by bucket and
key, or `file` and path.
"""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import importlib.util
import queue
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from batchinfer.errors import ExitCode, JobFileError
from batchinfer.events import Event, PlanFollowed, RunFinished, RunStarted

if TYPE_CHECKING:
    from batchinfer.config import Job

_GLOB = re.compile(r"[*?\[]")
_ENDS = {ExitCode.OK: "COMPLETE", ExitCode.INTERRUPTED: "ABORT"}


class Lineage:
    """Sends the events from a thread of its own. A service that does not take one costs a call of `warn`.

    Raises JobFileError where the client library is not installed.
    """

    def __init__(self, job: Job, *, warn: Callable[[str], None]) -> None:
        options = job.observe.openlineage
        assert options is not None
        if importlib.util.find_spec("openlineage") is None:
            raise JobFileError(
                f"{job.place(('observe', 'openlineage'))}  observe.openlineage: its client is not installed",
                hint="pip install 'batchinfer-pipeline[openlineage]'",
            )
        self._job = job
        self._options = options
        self._warn = warn
        self._run = ""
        self._fingerprint: str | None = None
        self._failed = False
        self._waiting: queue.SimpleQueue[tuple[str, dt.datetime, RunFinished | None] | None]
        self._waiting = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, name="lineage", daemon=True)

    def on_event(self, event: Event) -> None:
        """Queue what there is to tell."""
        now = dt.datetime.now(dt.UTC)
        if isinstance(event, RunStarted) and not self._run:
            self._run = event.run
            self._thread.start()
            self._waiting.put(("START", now, None))
        elif isinstance(event, PlanFollowed):
            self._fingerprint = event.fingerprint
        elif isinstance(event, RunFinished) and self._run:
            self._waiting.put((_ENDS.get(ExitCode(event.exit_code), "FAIL"), now, event))

    def close(self) -> None:
        """Send the last event, or give it up."""
        if self._run:
            self._waiting.put(None)
            self._thread.join(2 * self._options.timeout)

    def _send_all(self) -> None:
        client: Any = None
        while (item := self._waiting.get()) is not None:
            try:
                client = client or self._client()
                client.emit(self._event(*item))
            except Exception as error:  # noqa: BLE001 - whatever its client raises: the job goes on
                if not self._failed:
                    self._failed = True
                    what = f"OpenLineage events are not taken ({type(error).__name__}); the job goes on"
                    self._warn(what)

    def _client(self) -> Any:
        """Return a client of the service, or of the file."""
        from openlineage.client import OpenLineageClient
        from openlineage.client.transport.file import FileConfig, FileTransport
        from openlineage.client.transport.http import HttpConfig, HttpTransport

        options = self._options
        if options.file is not None:
            return OpenLineageClient(
                transport=FileTransport(FileConfig(log_file_path=options.file, append=True))
            )
        config: dict[str, Any] = {"url": options.url, "timeout": options.timeout, "retry": {"total": 1}}
        if options.api_key is not None:
            config["auth"] = {"type": "api_key", "apiKey": options.api_key}
        return OpenLineageClient(transport=HttpTransport(HttpConfig.from_dict(config)))

    def _event(self, state: str, at: dt.datetime, finished: RunFinished | None) -> Any:
        """Return one event; the last one says how it ended and how many rows there are."""
        from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
        from openlineage.client.facet_v2 import (
            dataset_version_dataset,
            error_message_run,
            job_type_job,
            output_statistics_output_dataset,
            processing_engine_run,
        )

        job = self._job
        version = importlib.metadata.version("batchinfer-pipeline")
        engine = processing_engine_run.ProcessingEngineRunFacet(version=version, name="batchinfer")
        facets: dict[str, Any] = {"processing_engine": engine}
        found: dict[str, Any] = {}
        if finished is not None and finished.error:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(finished.error, "Python")
        if finished is not None and finished.rows_ok is not None:
            rows = finished.rows_ok + (finished.rows_error or 0)
            statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
            found["outputStatistics"] = statistics
        kept = {}
        if self._fingerprint is not None:
            kept["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(self._fingerprint)
        paths = job.input.path if isinstance(job.input.path, tuple) else (job.input.path,)
        kind = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="BATCHINFER", jobType="JOB")
        return RunEvent(
            eventType=RunState[state],
            eventTime=at.isoformat(),
            run=Run(runId=run_uuid(self._run), facets=facets),
            job=Job(namespace=self._options.namespace, name=job.name, facets={"jobType": kind}),
            producer=f"pkg:pypi/batchinfer-pipeline@{version}",
            inputs=[InputDataset(*named(path)) for path in paths],
            outputs=[OutputDataset(*named(job.output.path), facets=kept, outputFacets=found)],
        )


def run_uuid(run: str) -> str:
    """Return a run's id as the UUID that OpenLineage asks for: always the same one."""
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"batchinfer:{run}"))


def named(path: str) -> tuple[str, str]:
    """Return namespace and name of the dataset at a path; of a glob, of the folder above it."""
    fixed = path
    if found := _GLOB.search(path):
        fixed = path[: found.start()].rpartition("/")[0] or "/"
    if "://" not in fixed:
        return "file", fixed.rstrip("/") or "/"
    parts = urlsplit(fixed)
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or "/"
