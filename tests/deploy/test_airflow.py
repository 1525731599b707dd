"""The Airflow example, without Airflow: its table of exit codes, and what its operator makes of them.

The operator runs here against a stand-in for the few names of Airflow that it uses.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Self

import pytest

from batchinfer.errors import ExitCode

FILE = Path(__file__).parents[2] / "jobs/airflow/product_embeddings.py"

NEVER_RETRY = {
    ExitCode.USAGE,
    ExitCode.DATA_QUALITY,
    ExitCode.DATA,
    ExitCode.NO_INPUT,
    ExitCode.FINGERPRINT,
    ExitCode.UNSAFE_STORE,
    ExitCode.POISON,
    ExitCode.AUTH,
    ExitCode.CONFIG,
}


class RetryError(Exception):
    """Airflow would try again."""


class FailError(RetryError):
    """Airflow would give up."""


class SkipError(RetryError):
    """Airflow would skip the task."""


class Hook:
    """Runs nothing, and ends as it was told."""

    exit_code = 0

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.stopped = 0

    def run_command(self, command: list[str]) -> Any:
        """Note the command."""
        self.commands.append(command)
        return types.SimpleNamespace(exit_code=self.exit_code, output="")

    def send_sigterm(self) -> None:
        """Note the signal."""
        self.stopped += 1


class Operator:
    """Takes what Airflow's own takes."""

    def __init__(self, **kwargs: Any) -> None:
        self.task_id = kwargs["task_id"]


class Dag:
    """Keeps its settings."""

    def __init__(self, **kwargs: Any) -> None:
        self.settings = kwargs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


@pytest.fixture
def dag(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the file defines, with the stand-in in the place of Airflow."""
    contents: dict[str, dict[str, Any]] = {
        "airflow.sdk": {"DAG": Dag, "BaseOperator": Operator},
        "airflow.sdk.exceptions": {
            "AirflowException": RetryError,
            "AirflowFailException": FailError,
            "AirflowSkipException": SkipError,
        },
        "airflow.providers.standard.hooks.subprocess": {"SubprocessHook": Hook},
    }
    for name, members in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("BATCHINFER_COMMAND", "BATCHINFER_JOB"):
        monkeypatch.delenv(name, raising=False)
    found: dict[str, Any] = {"__name__": "product_embeddings"}
    exec(compile(FILE.read_text(encoding="utf-8"), FILE, "exec"), found)  # noqa: S102 - our own example
    return found


def test_the_table_is_that_of_the_exit_codes(dag: dict[str, Any]) -> None:
    """The file names exactly the codes after which a retry is useless, each with its meaning."""
    assert dag["NEVER_RETRY"].keys() == {int(code) for code in NEVER_RETRY}
    assert all(dag["NEVER_RETRY"].values())
    assert dag["SKIP"] == ExitCode.EMPTY


@pytest.mark.parametrize("code", [*ExitCode, -9, -11, 137])
def test_each_exit_code_has_its_end(dag: dict[str, Any], monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Done is success, nothing to do is a skip, hopeless is a failure, and the rest is tried again."""
    monkeypatch.setattr(Hook, "exit_code", int(code))
    operator = dag["BatchinferOperator"](task_id="t", job="job.yaml")
    if code == ExitCode.OK:
        operator.execute({})
        return
    with pytest.raises(RetryError) as caught:
        operator.execute({})
    if code == ExitCode.EMPTY:
        assert caught.type is SkipError
    else:
        assert caught.type is (FailError if code in NEVER_RETRY else RetryError)
        assert f"exited with {int(code)}" in str(caught.value)


def test_the_command_line(dag: dict[str, Any]) -> None:
    """Parameters are arguments of their own: nothing goes through a shell."""
    operator = dag["BatchinferOperator"](
        task_id="t", job="a job.yaml", job_params={"day": "2026-10-01; rm -rf /"}
    )
    operator.execute({})
    assert operator._process.commands == [
        ["batchinfer", "run", "a job.yaml", "--param", "day=2026-10-01; rm -rf /", "--exit-empty", "99"]
    ]
    assert operator.template_fields == ("job", "job_params")
    operator.on_kill()
    assert operator._process.stopped == 1


def test_the_dag_retries_and_does_not_overlap(dag: dict[str, Any]) -> None:
    """One run at a time, with retries and a limit in time."""
    settings = dag["dag"].settings
    assert settings["max_active_runs"] == 1
    assert settings["catchup"] is False
    assert settings["default_args"]["retries"] >= 3
    assert settings["default_args"]["execution_timeout"]
