"""What users touch is frozen: to change it is a decision, made by editing these lists."""

from __future__ import annotations

import typing

import typer

import batchinfer
from batchinfer import registry
from batchinfer.cli.app import app
from batchinfer.config import error_section, limits, lineage, sections
from batchinfer.data import ErrorCode
from batchinfer.errors import ExitCode
from batchinfer.events import Event
from batchinfer.telemetry.records import EVENT_NAMES

EXIT_CODES = {
    "OK": 0,
    "CRASH": 1,
    "USAGE": 2,
    "DATA_QUALITY": 3,
    "DATA": 65,
    "NO_INPUT": 66,
    "FINGERPRINT": 67,
    "UNAVAILABLE": 69,
    "INTERNAL": 70,
    "DEVICE": 71,
    "UNSAFE_STORE": 73,
    "IO": 74,
    "INTERRUPTED": 75,
    "POISON": 76,
    "AUTH": 77,
    "CONFIG": 78,
    "EMPTY": 99,
}
VERBS = {
    "init": {"model", "data", "--output", "--write", "-w"},
    "validate": {"job", "--param", "-p", "--set", "-s", "--model", "--no-model"},
    "preview": {"job", "--param", "-p", "--set", "-s", "--rows", "-n", "--json", "--save-canary"},
    "plan": {"job", "--param", "-p", "--set", "-s", "--sample", "--json"},
    "tune": {"job", "--param", "-p", "--set", "-s", "--rows", "-n", "--seconds", "--json"},
    "run": {
        "job",
        "--param",
        "-p",
        "--set",
        "-s",
        "--log-format",
        "--log-file",
        "--exit-empty",
        "--shard",
        "--force",
        "--measure",
    },
    "status": {"output", "--watch", "-w", "--every", "--json"},
    "errors": {"output", "--where", "--samples", "-n", "--export", "--json"},
    "retry": {"output", "--where", "--mended", "--param", "-p", "--set", "-s", "--log-format", "--log-file"},
    "verify": {"output", "--footer", "--deep"},
    "gc": {"output", "--delete", "--json"},
    "export grafana": {"job", "--param", "-p", "--set", "-s"},
    "export alerts": {
        "job",
        "--param",
        "-p",
        "--set",
        "-s",
        "--stalled-after",
        "--no-success-after",
        "--failing",
        "--waiting",
        "--hold",
    },
    "schema": set(),
    "doctor": {"--json"},
}
KEYS = {
    "InputOptions": "path format storage_options partitioning columns where limit sample incremental",
    "ModelOptions": "backend path entry version sha256 inputs precision canary forbid_nan allow_unsafe_model",
    "BatchingOptions": "size by window_rows buckets packed",
    "OutputOptions": "path format storage_options carry columns partition_by meta commit",
    "CheckpointOptions": "unit_rows every spill_bytes",
    "ErrorsOptions": "on_error to keep_input max max_per_partition retry check_finite",
    "ComputeOptions": "devices workers_per_device concurrency threads readers loaders host_memory "
    "affinity determinism claims heartbeat stall_timeout",
    "RetryOptions": "transient timeout",
    "CanaryOptions": "path rtol atol",
    "LimitsOptions": "deadline max_rows max_device_hours price_per_device_hour max_cost grace",
    "ObserveOptions": "interval log_file pushgateway listen textfile compat_names openlineage",
    "OpenLineageOptions": "url file api_key namespace timeout",
    "PushgatewayOptions": "url every instance timeout user password token ca",
}
EVENTS = {
    "RunStarted",
    "OthersCommitted",
    "PlanFollowed",
    "SettingsChosen",
    "WorkerReady",
    "BatchFinished",
    "StagesTimed",
    "EfficiencyMeasured",
    "Retried",
    "UnitCommitted",
    "WorkerExited",
    "WorkerSaid",
    "Warned",
    "Listening",
    "RunFailed",
    "RunFinished",
}
LOG_EVENTS = (
    "run_started settings worker_ready worker_said worker_exited unit_committed progress warning error listening "
    "run_finished lines_dropped"
)
COMPONENTS = {
    "sources": "arrow csv files jsonl parquet",
    "preprocessors": "columns image prompt python tokenize",
    "backends": "onnx python simulated torch transformers",
    "postprocessors": "argmax cast cls_pool labels mean_pool normalize python rename sigmoid softmax threshold top_k",
    "sinks": "jsonl parquet",
}
ERROR_CODES = "decode schema model timeout memory crash device endpoint user"


def test_exit_codes() -> None:
    """Schedulers depend on the numbers."""
    assert {code.name: int(code) for code in ExitCode} == EXIT_CODES


def test_the_python_interface() -> None:
    """What `import batchinfer` offers, and that all of it is there."""
    assert batchinfer.__all__ == ["BatchinferError", "ExitCode", "RunReport", "run_job"]
    assert all(getattr(batchinfer, name) is not None for name in batchinfer.__all__)


def test_the_command_line() -> None:
    """Every verb with its arguments and options."""
    found = {}
    commands = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    verbs = commands.pop("export").commands
    commands |= {f"export {name}": command for name, command in verbs.items()}
    for name, command in commands.items():
        spelled = {
            text
            for parameter in command.params
            for text in (
                [*parameter.opts, *parameter.secondary_opts]
                if parameter.param_type_name == "option"
                else [parameter.name]
            )
        }
        found[name] = spelled - {"--help"}
    assert found == VERBS


def test_the_keys_of_a_job() -> None:
    """The keys that every format and backend shares, section by section."""
    homes = {**vars(sections), **vars(limits), **vars(error_section), **vars(lineage)}
    found = {name: " ".join(homes[name].model_fields) for name in KEYS}
    assert found == KEYS


def test_components() -> None:
    """The names that a job file may use."""
    assert {kind: " ".join(sorted(names)) for kind, names in registry.BUILT_IN.items()} == COMPONENTS


def test_events_and_error_codes() -> None:
    """What observers hear, and why a row may fail."""
    assert {cls.__name__ for cls in typing.get_args(Event)} == EVENTS
    assert " ".join(ErrorCode) == ERROR_CODES


def test_the_events_of_a_log() -> None:
    """What the `event` of a log line may be."""
    assert " ".join(EVENT_NAMES) == LOG_EVENTS
