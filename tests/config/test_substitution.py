"""`${param:NAME}`, `${env:NAME}` and `--set`: what they put in, and what never gets out."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from batchinfer.config import Job, load_job
from batchinfer.errors import JobFileError

Write = Callable[[str | bytes], str]

PARAMS = """\
params: {day: 2026-10-01, rows: 50, release: 1.10, strict: true, must: null}
job: a
description: "${param:day} ${param:release} ${param:rows} ${param:strict} $${param:day} $5 ${param:must}"
input: {path: "data/dt=${param:day}", limit: "${param:rows}"}
model: {path: m.onnx, forbid_nan: "${param:strict}"}
output: {path: out}
"""


def load_error(source: str, **more: object) -> str:
    """Return the report of a job file that is refused."""
    with pytest.raises(JobFileError) as caught:
        load_job(source, **more)  # type: ignore[arg-type]
    return str(caught.value)


def test_parameters(job_file: Write, tmp_path: object) -> None:
    """A default keeps its type where it stands alone, and its form inside a text."""
    job = load_job(job_file(PARAMS), params={"must": "now"})
    assert job.description == "2026-10-01 1.10 50 true ${param:day} $5 now"
    assert job.input.limit == 50
    assert job.model.forbid_nan is True
    assert job.input.path == f"{tmp_path}/data/dt=2026-10-01"
    assert job.params == {"day": "2026-10-01", "must": "now", "release": 1.1, "rows": 50, "strict": True}


def test_given_parameters(job_file: Write) -> None:
    """`--param` replaces a default; a number stays a number, text stays text."""
    given = {"must": "7", "rows": "7", "day": "7", "strict": "false", "release": "2.0"}
    job = load_job(job_file(PARAMS), params=given)
    assert job.description == "7 2.0 7 false ${param:day} $5 7"
    assert job.input.limit == 7
    assert job.model.forbid_nan is False


def test_a_document_with_parameters_loads_again(job_file: Write) -> None:
    """The stored document means the same without `params`, escapes included."""
    job = load_job(job_file(PARAMS), params={"must": "${env:HOME} $${x"})
    assert job.description is not None
    assert job.description.endswith("$5 ${env:HOME} $${x")
    again = load_job(dict(job.document))
    assert "params" not in job.document
    assert again.description == job.description
    assert Job.from_message(job.to_message()).description == job.description


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"must": "x", "dya": "x"},
            "--param dya: no such parameter; did you mean 'day'?",
        ),
        (
            {"must": "x", "zzz": "x"},
            "--param zzz: no such parameter (known: day, must, release, rows and strict)",
        ),
        (
            {"must": "x", "rows": "many"},
            "job.yaml:4:39  input.limit: must be a whole number of at least 1, got 'many' (text)",
        ),
        (
            {},
            (
                "job.yaml:3:1  description: parameter 'must' has no value; "
                "give --param must=VALUE or a default under `params`"
            ),
        ),
    ],
)
def test_wrong_parameters(job_file: Write, params: dict[str, str], message: str) -> None:
    """A parameter that does not exist, has no value or does not fit is told like any other problem."""
    assert load_error(job_file(PARAMS), params=params) == message


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("input.limit=3", lambda job: job.input.limit == 3),
        ("model.version='3'", lambda job: job.model.version == "3"),
        ("output.carry=[a, b]", lambda job: job.output.carry == ("a", "b")),
        ("output.columns={a: int64}", lambda job: job.output.columns == {"a": "int64"}),
        ("batching.size=8", lambda job: job.batching.size == 8),
        ("input.path=[a-b]*.parquet", None),
        ("input.where=a == 'b: c'", lambda job: job.input.where == "a == 'b: c'"),
        ("preprocess[0].tokenize.max_length=9", lambda job: job.preprocess[0].options.max_length == 9),
        ("preprocess.0.tokenize.max_length=9", lambda job: job.preprocess[0].options.max_length == 9),
        ("labels.7=x", lambda job: job.labels == {"7": "x"}),
        ("description=", lambda job: job.description is None),
    ],
)
def test_overrides(job_file: Write, minimal: str, override: str, read: Callable[[Job], bool] | None) -> None:
    """`--set` puts one value in, read as YAML; sections and keys come into being as needed."""
    text = minimal + "preprocess:\n  - tokenize: {column: t, tokenizer: t.json}\n"
    if read is None:
        assert load_error(job_file(text), overrides=[override]).startswith(
            "--set input.path: is not a YAML value"
        )
    else:
        assert read(load_job(job_file(text), overrides=[override]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "batching.size=big",
            "--set batching.size: must be a number of bytes such as 1073741824, 512MiB or 2GB, got 'big'",
        ),
        ("batching.sise=3", "--set batching.sise: unknown key; did you mean 'size'?"),
        ("batching", "--set batching: must look like `key.path=value`"),
        (
            "preprocess.3.x=1",
            "--set preprocess.3.x  preprocess[3].x: `preprocess` is a list of 0; there is no '3'",
        ),
        ("job.x=1", "--set job.x: `job` is neither a mapping nor a list; it has no keys"),
        ("input.limit=[1", "--set input.limit: is not a YAML value; quote it, or close its brackets"),
    ],
)
def test_wrong_overrides(job_file: Write, minimal: str, override: str, message: str) -> None:
    """A problem of an override has the override for its place."""
    text = minimal + "preprocess: []\n"
    assert load_error(job_file(text), overrides=[override]) == message


SECRET = "hunter2-canary"  # noqa: S105 - no password of anybody
WITH_SECRETS = """\
job: a
input:
  path: "${env:BUCKET}/x"
  storage_options: {secret_access_key: "${env:SECRET}", nested: {token: "${env:SECRET}"}}
model: {backend: endpoint, api_key: "${env:SECRET}"}
output: {path: out, storage_options: {password: "${env:SECRET}"}}
observe: {pushgateway: {url: "https://me:${env:SECRET}@host:9091", instance: "${env:SECRET}"}}
"""


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("BUCKET", "s3://lake")


@pytest.mark.usefixtures("_environment")
def test_secrets_arrive_and_never_leave(job_file: Write) -> None:
    """The options hold the values; no text, document or message that a job gives does."""
    job = load_job(job_file(WITH_SECRETS))
    assert job.input.storage_options == {"secret_access_key": SECRET, "nested": {"token": SECRET}}
    assert job.input.path == "s3://lake/x"
    assert job.observe.pushgateway is not None
    assert job.observe.pushgateway.url == f"https://me:{SECRET}@host:9091"
    sections = [job.input, job.model, job.output, job.observe]
    texts = [repr(job), str(job), json.dumps(job.document), json.dumps(job.to_message())]
    texts += [repr(section) for section in sections] + [str(section) for section in sections]
    assert all(SECRET not in text for text in texts)
    assert job.document["input"]["path"] == "${env:BUCKET}/x"
    assert Job.from_message(job.to_message()) == job


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ('api_key: "${env:SECRET}"', 'api_key: "bad ${env:SECRET}"'),
            "job.yaml:5:28  model.api_key: is no key: '***'",
        ),
        (
            ('"${env:BUCKET}/x"', '"https://u:${env:SECRET}@host/x"'),
            (
                "job.yaml:3:3  input.path: holds a password or a signature, "
                "and paths are shown and stored; use storage_options"
            ),
        ),
        (
            ('url: "https://me:${env:SECRET}@host:9091"', 'url: "${env:SECRET}"'),
            "job.yaml:7:25  observe.pushgateway.url: must be an http:// or https:// URL",
        ),
    ],
)
def test_secrets_never_stand_in_messages(job_file: Write, change: tuple[str, str], message: str) -> None:
    """A value from the environment that is refused is named by its variable."""
    assert load_error(job_file(WITH_SECRETS.replace(*change))) == message


@pytest.mark.usefixtures("_environment")
def test_a_bad_value_beside_a_secret_does_not_print_it(job_file: Write) -> None:
    """Not even an error in another field, or one about a whole value, shows what came from outside."""
    text = WITH_SECRETS.replace('nested: {token: "${env:SECRET}"}', "token: 3").replace(
        "path: out", "path: 3"
    )
    text = text.replace('instance: "${env:SECRET}"', 'instance: ["${env:SECRET}"]')
    report = load_error(job_file(text))
    assert SECRET not in report
    assert "observe.pushgateway.instance: must be text, got a list of 1" in report


def test_a_secret_that_was_written_down_is_not_printed(job_file: Write, minimal: str) -> None:
    """A secret of the wrong type, or one that its check repeats, is refused without being shown."""
    text = minimal.replace("path: model.onnx", "backend: endpoint\n  api_key: {}")
    number = load_error(job_file(text.format("4815162342")))
    assert number == "job.yaml:6:3  model.api_key: must be text, got a number"
    quoted = load_error(job_file(text.format('"bad-canary ${env:HOME}"')))
    assert "canary" not in quoted
    storage = load_error(job_file(minimal + "  storage_options: canary\n"))
    assert storage == "job.yaml:8:3  output.storage_options: must be a mapping, got text"


def test_a_variable_that_is_not_text(job_file: Write, minimal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are not UTF-8 are refused by the variable's name."""
    monkeypatch.setenv("BAD", "a\udcff")
    text = minimal.replace("data/*.parquet", "${env:BAD}")
    assert (
        load_error(job_file(text))
        == "job.yaml:3:3  input.path: the environment variable BAD is not UTF-8 text"
    )


def test_environment_variables_are_read_where_a_job_is_rebuilt(
    job_file: Write, minimal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lacks a variable says so, with the place in the job file."""
    monkeypatch.setenv("FOLDER", "data")
    message = load_job(job_file(minimal.replace("data/", "${env:FOLDER}/"))).to_message()
    monkeypatch.delenv("FOLDER")
    with pytest.raises(
        JobFileError, match=r"^job.yaml:3:3  input.path: the environment variable FOLDER is not set$"
    ):
        Job.from_message(message)
