"""A secret comes from the environment and goes to its server; it is written and printed nowhere."""

from __future__ import annotations

import io
import json
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from batchinfer import run_job
from batchinfer.cli.failures import show_failure
from batchinfer.config import fingerprint, load_job
from batchinfer.config.credentials import path_problem
from batchinfer.config.sections import ObserveOptions
from batchinfer.data import ErrorCode, Receipt, RowError
from batchinfer.errors import DataError, JobFileError
from batchinfer.events import RunFinished, RunStarted, UnitCommitted, Warned, WorkerSaid
from batchinfer.redact import redact
from batchinfer.telemetry import make_observers
from tests.conftest import Run, doubling_job, write_shards
from tests.security.canary import SECRET, VARIABLE, assert_no_canary, watching_processes
from tests.security.canary import secret_canary as secret_canary  # noqa: PLC0414 - a fixture
from tests.security.servers import Heard, serving

ENV = f"${{env:{VARIABLE}}}"
OPTIONS = {"secret_access_key": ENV, "access_key_id": ENV, "session_token": ENV, "deep": {"password": ENV}}
STEP = f"""
import os, sys
print("the library says", os.environ["{VARIABLE}"])
print("GET /lake/a.parquet?X-Amz-Signature=" + os.environ["{VARIABLE}"], file=sys.stderr)

def step(rows):
    if rows.num_rows and os.environ.get("STEP_FAILS"):
        raise RuntimeError("cannot sign in with " + os.environ["{VARIABLE}"])
    return {{"x": rows["x"]}}
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret_canary: str) -> Iterator[str]:
    """A job that has secrets wherever one may stand, and a step that prints them."""
    monkeypatch.setenv("CANARY_IN_URL", quote(secret_canary, safe=""))
    monkeypatch.setenv("BATCHINFER_DEBUG", "1")
    write_shards(tmp_path / "in", [250])
    (tmp_path / "canary_step.py").write_text(STEP)

    def answer(heard: Heard) -> tuple[int, bytes]:
        return 500, f"not with {heard.headers}".encode()

    with serving(answer) as gateway:
        url = f"http://me:${{env:CANARY_IN_URL}}@127.0.0.1:{gateway.port}/push"
        path = doubling_job(
            tmp_path,
            input={"storage_options": OPTIONS},
            preprocess=[{"python": "canary_step:step"}],
            output={"storage_options": OPTIONS, "meta": ["_source", "_run"]},
            observe={"pushgateway": {"url": url, "instance": "one"}},
        )
        yield str(path)
    assert gateway.requests
    for heard in gateway.requests:
        assert "Authorization: Basic " in heard.headers
        assert_no_canary(None, heard.line, heard.body.decode())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_run_keeps_its_secrets(job: str, tmp_path: Path, batchinfer: Run, log_format: str) -> None:
    """Plan, parts, manifest, logs, warnings and command lines of a run that succeeds hold no secret, though
    a library prints it; nor do the other verbs."""
    with watching_processes() as commands:
        done = batchinfer("run", job, "--log-format", log_format)
    assert done.returncode == 0, done.stderr
    assert "the library says ***" in done.stderr
    assert "X-Amz-Signature=***" in done.stderr
    assert "cannot push metrics to 127.0.0.1" in done.stderr
    assert any("batchinfer.runner.worker" in command for command in commands)
    assert_no_canary(tmp_path, done.stdout, done.stderr, *commands)
    if log_format == "json":
        return
    for verb in (["plan", "--json"], ["verify", "--deep"]):
        said = batchinfer(verb[0], job, *verb[1:])
        assert said.returncode == 0, said.stderr
        assert_no_canary(None, said.stdout, said.stderr)


def test_a_run_that_fails_keeps_its_secrets(
    job: str, tmp_path: Path, batchinfer: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback that is asked for, and the error of code that quotes a secret, are shown without it."""
    monkeypatch.setenv("STEP_FAILS", "1")
    done = batchinfer("run", job)
    assert done.returncode == 3
    assert "canary_step:step raised RuntimeError" in done.stderr
    assert "cannot sign in with ***" in done.stderr
    assert_no_canary(tmp_path, done.stdout, done.stderr)


def test_a_server_that_repeats_a_secret_is_not_quoted(
    tmp_path: Path, batchinfer: Run, secret_canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that answers with what it was sent, and an option that its client cannot read, are told
    without the secret."""
    monkeypatch.setenv("BATCHINFER_DEBUG", "1")

    def answer(heard: Heard) -> tuple[int, bytes]:
        text = f"<Error><Code>SignatureDoesNotMatch</Code><Message>{heard.headers}{secret_canary}</Message></Error>"
        return 403, text.encode()

    with serving(answer) as store:
        options = {**OPTIONS, "endpoint_url": f"http://127.0.0.1:{store.port}"}
        options.pop("deep")
        path = doubling_job(tmp_path, input={"path": "s3://lake/in/*.parquet", "storage_options": options})
        done = batchinfer("run", str(path))
    assert done.returncode == 77
    assert "permission denied" in done.stderr
    assert_no_canary(tmp_path, done.stdout, done.stderr)
    document = {**json.loads(path.read_text()), "output": {"path": str(tmp_path / "out")}}
    document["input"]["storage_options"] = {"secret_access_key": ENV, "virtual_hosted_style_request": ENV}
    with pytest.raises(JobFileError, match="cannot make a client") as caught:
        run_job(document)
    assert_no_canary(tmp_path, str(caught.value), repr(caught.value), caught.value.message)


def test_what_travels_and_what_is_hashed_holds_no_secret(
    tmp_path: Path, secret_canary: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job as it is stored, sent to workers and printed has the names of variables, and another secret
    is no other job."""
    path = doubling_job(tmp_path, input={"storage_options": OPTIONS}, output={"storage_options": OPTIONS})
    loaded = load_job(path)
    assert loaded.input.storage_options["secret_access_key"] == secret_canary
    before = fingerprint(loaded)
    texts = [json.dumps(loaded.to_message()), json.dumps(dict(loaded.document)), json.dumps(before.parts)]
    texts += [f(part) for f in (repr, str) for part in (loaded, loaded.input, loaded.output)]
    assert_no_canary(tmp_path, *texts)
    monkeypatch.setenv(VARIABLE, "another-secret")
    assert fingerprint(load_job(path)) == before


def test_a_crash_keeps_its_secrets(
    tmp_path: Path, secret_canary: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback of a bug of ours, which quotes anything, is shown without the secret."""
    load_job(doubling_job(tmp_path, input={"storage_options": OPTIONS}))
    show_failure(RuntimeError(f"cannot take {secret_canary} of https://me:hunter2hunter2@host/x"))
    said = capsys.readouterr().err
    assert "RuntimeError: cannot take *** of https://***@host/x" in said
    assert "hunter2" not in said
    assert_no_canary(None, said)


LETTERS = string.ascii_letters + string.digits + "-_.~"
AWS_LETTERS = string.ascii_letters + string.digits + "/+="
SIGNATURES = (
    *("sig", "signature", "Signature", "X-Amz-Signature", "x-amz-signature", "X-Amz-Credential"),
    *("X-Amz-Security-Token", "X-Goog-Signature", "X-Goog-Credential", "token", "access_token"),
    *("AWSAccessKeyId", "password", "client_secret", "api_key", "apikey", "auth", "code", "sas_token"),
)
AROUND = (
    *("{}", "GET {} failed", "could not reach '{}', tried 3 times", '{{"url": "{}"}}', "({})", "<{}>"),
    *("{}: 403 Forbidden", "see {}.", "a={} b", "{} is no URL", "{}\n  at line 3", "[{}]"),
)


def url_with_secret(chance: random.Random) -> tuple[str, str, str]:
    """Return a URL that holds a secret, the secret, and what should still be there afterwards."""

    def word(letters: str = LETTERS, least: int = 8) -> str:
        return "".join(chance.choice(letters) for _ in range(chance.randint(least, 24)))

    secret = f"Zq{word()}"
    host = f"{word(string.ascii_lowercase, 3)}.example{chance.choice(['', ':9000', ':443'])}"
    path = "/".join(["", *(word(LETTERS, 1) for _ in range(chance.randint(0, 3)))])
    harmless = [f"{word(string.ascii_lowercase, 2)}x={word()}" for _ in range(chance.randint(0, 2))]
    match chance.randrange(6):
        case 0:
            scheme = chance.choice(["https", "http", "s3", "ftp", "sftp", "hdfs", "redis", "gs", "HTTPS"])
            user = chance.choice(["", word(), quote(word(AWS_LETTERS), safe="")])
            return f"{scheme}://{user}:{secret}@{host}{path}", secret, host.partition(":")[0]
        case 1:
            return f"https://{secret}@{host}{path}", secret, host
        case 2:
            # Not encoded, as people write it: the slash ends the name of the server too early.
            raw = f"{secret}/{word(AWS_LETTERS)}"
            return f"s3://AKIA{word(string.ascii_uppercase)}:{raw}@bucket{path}", secret, "@bucket"
        case 3:
            name = "".join(chance.choice([c, f"%{ord(c):02x}"]) for c in chance.choice(SIGNATURES))
            pairs = [*harmless, f"{name}={secret}"]
            chance.shuffle(pairs)
            return f"https://{host}{path or '/'}?{chance.choice('&;').join(pairs)}", secret, host
        case 4:
            inner = quote(f"https://me:{secret}@{host}/x", safe="")
            return f"https://proxy.example{path or '/'}?u={inner}", secret, "proxy.example"
        case _:
            name = chance.choice(["access_token", "id_token", "token"])
            return f"https://{host}{path or '/'}#{name}={secret}", secret, host


def test_a_thousand_urls_lose_their_secrets() -> None:
    """Userinfo, signatures of three clouds, tokens and URLs inside of URLs: none gets through, whatever
    stands around it, and which server it was can still be read."""
    chance = random.Random(20260101)
    for _ in range(1000):
        url, secret, kept = url_with_secret(chance)
        text = chance.choice(AROUND).format(url)
        shown = redact(text)
        assert secret not in shown, f"{text} became {shown}"
        assert kept.lower() in shown.lower(), f"{text} became {shown}"
        assert redact(shown) == shown
        error = DataError(f"cannot read {url}", where=url, hint=f"try {url}")
        error.details = f"Traceback\n{url}"
        assert secret not in f"{error} {error!r} {error.args} {error.message} {error.details}"


def test_a_path_with_a_secret_is_refused(tmp_path: Path) -> None:
    """Paths are stored in the plan: one that holds a secret never gets there, and is not repeated."""
    chance = random.Random(7)
    for _ in range(200):
        url, secret, _ = url_with_secret(chance)
        assert path_problem(url) is not None, url
        for section in ("input", "output"):
            document: dict[str, Any] = {
                "job": "a",
                "input": {"path": "d"},
                "model": {"backend": "simulated"},
                "output": {"path": "o"},
            }
            document[section] = {"path": url}
            with pytest.raises(JobFileError) as caught:
                load_job(document)
            assert secret not in str(caught.value)


def test_text_without_a_secret_stays_as_it_is() -> None:
    """What only looks like one is left alone: an error message must say what it is about."""
    for text in (
        *("s3://lake/month=1/token=3/part-0.parquet", "/data/a:b@c", "https://h/x?page=2&size=3#top"),
        *("abfss://box@account.dfs.core.windows.net/x", "sftp://me@host:22/in", "http://gateway:9091"),
        *("exit code=3", "tokens=512 of 1,024", "code: 78, key: value", "https://[::1]:9000/a@b", "a://b"),
        *("column 'password' is null", "basic authentication is off", "hdfs://name:8020/a@b"),
    ):
        assert redact(text) == text


def test_no_observer_shows_a_secret(tmp_path: Path) -> None:
    """Whatever an event says, neither lines of text, nor JSON, nor the live display repeat it."""
    chance = random.Random(11)
    found = [url_with_secret(chance) for _ in range(30)]
    errors = tuple(
        RowError(stage="image", code=ErrorCode.DECODE, message=f"no {url}", attempts=1, source="a", row=at)
        for at, (url, _, _) in enumerate(found[:5])
    )
    for interactive, log_format in ((False, "text"), (False, "json"), (True, "text")):
        stream = io.StringIO()
        observers = make_observers(
            ObserveOptions(), job="a", interactive=interactive, log_format=log_format, stream=stream
        )
        events: list[Any] = [
            RunStarted(
                job="a",
                run="r",
                units_total=1,
                units_done=0,
                rows_total=9,
                rows_done=0,
                num_workers=1,
                model="m",
                output="o",
            )
        ]
        for url, _, _ in found:
            events += [WorkerSaid(worker=0, line=f"GET {url}"), Warned(code="c", message=f"no\n{url}")]
        receipt = Receipt(
            unit=0, parts=(), rows_read=9, rows_ok=4, rows_error=5, rows_filtered=0, won=True, errors=errors
        )
        events += [
            UnitCommitted(worker=0, receipt=receipt),
            RunFinished(exit_code=0, seconds=1.0, complete=True, rows_ok=4, rows_error=5, rows_filtered=0),
        ]
        for event in events:
            for observer in observers:
                observer.on_event(event)
        for observer in observers:
            observer.close()
        said = stream.getvalue()
        assert "***" in said
        assert not [url for url, secret, _ in found if secret in said]


def test_what_is_no_secret_can_still_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what comes from the environment, the server and the region stay in messages, or nobody could tell
    what did not answer; a value too short to be a secret is not cut out of every word."""
    values = {
        "PLACE": "https://store.example:9000",
        "REGION": "north-by-northwest",
        "WORD": "true",
        "KEY": SECRET,
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    options = {"endpoint_url": "${env:PLACE}", "region": "${env:REGION}", "anon": "${env:WORD}"}
    document = {
        "job": "a",
        "input": {"path": "s3://lake/in", "storage_options": {**options, "secret_access_key": "${env:KEY}"}},
        "model": {"backend": "simulated"},
        "output": {"path": "o"},
    }
    load_job(document)
    text = f"{values['PLACE']} in {values['REGION']}: true, {SECRET}"
    assert redact(text) == "https://store.example:9000 in north-by-northwest: true, ***"
    error = DataError(text)
    error.details = text
    assert_no_canary(None, str(error), repr(error), error.details)
