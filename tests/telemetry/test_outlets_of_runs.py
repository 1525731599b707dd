"""What whole runs do with their metrics: who they log in as, and what goes wrong at no cost."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchinfer.config import load_job
from batchinfer.errors import JobFileError
from batchinfer.telemetry import make_observers
from tests.conftest import CANARY, Run, doubling_job, write_shards
from tests.security.servers import Heard, serving
from tests.telemetry.prometheus import free_address, server

PASSWORD = "${env:BATCHINFER_TEST_SECRET}"  # noqa: S105 - its value is the secret that no file may hold
HASHED = "$2b$04$abcdefghijklmnopqrstuuX/i0SrV.r0OMfw95JLNnMyt3Ky6pz/i"
CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem "
    "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
)


def warnings(stderr: str) -> list[str]:
    """Return what a run's log has to say against its outlets."""
    lines = [json.loads(line) for line in stderr.splitlines()]
    return [line["message"] for line in lines if line.get("code") in {"pushgateway", "listen", "textfile"}]


def run_job(batchinfer: Run, folder: Path, **observe: Any) -> subprocess.CompletedProcess[str]:
    """Run a small job with these outlets to its end, into a new output."""
    if not (folder / "in").exists():
        write_shards(folder / "in", [40])
    job = doubling_job(folder, observe=observe)
    done = batchinfer("run", str(job), "--log-format", "json", "--force")
    assert done.returncode == 0, done.stderr
    return done


def test_a_gateway_with_a_login_of_its_own(
    tmp_path: Path, require: Callable[[str], str], batchinfer: Run
) -> None:
    """A real Pushgateway behind TLS and a password takes what is pushed by who has both; the certificate is
    checked against the file that the job names, and a wrong password costs one warning."""
    require("prometheus-pushgateway")
    subprocess.run(CERTIFICATE.split(), cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "web.yml").write_text(
        "tls_server_config: {cert_file: cert.pem, key_file: key.pem}\n"
        f"basic_auth_users: {{us: {json.dumps(HASHED)}}}\n"
    )
    address, log = free_address(), tmp_path / "prometheus-pushgateway.log"
    command = ["prometheus-pushgateway", f"--web.listen-address={address}", "--web.config.file=web.yml"]
    with server(command, ready=lambda: "Listening on" in log.read_text(), folder=tmp_path):
        login = {"url": f"https://{address}", "user": "us", "password": PASSWORD}
        done = run_job(batchinfer, tmp_path, pushgateway={**login, "ca": "cert.pem"})
        assert warnings(done.stderr) == []
        asked = ["curl", "-s", "--cacert", "cert.pem", "-u", f"us:{CANARY}", f"https://{address}/metrics"]
        held = subprocess.run(asked, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert re.search(r'batchinfer_last_run_rows\{.*job="doubling",outcome="ok"\} 40\n', held)
        (warning,) = warnings(run_job(batchinfer, tmp_path, pushgateway=login).stderr)
        assert "certificate" in warning
        wrong = {**login, "user": "them", "ca": "cert.pem"}
        (warning,) = warnings(run_job(batchinfer, tmp_path, pushgateway=wrong).stderr)
        assert "it answers HTTP 401" in warning


def test_a_token_is_sent_and_never_told(tmp_path: Path, batchinfer: Run) -> None:
    """A bearer token goes along with every push, the first of which comes before the model is there; and the
    gateway hears every name of `compat_names`."""

    def answer(heard: Heard) -> tuple[int, bytes]:
        return 200, b""

    with serving(answer) as gateway:
        url = f"http://127.0.0.1:{gateway.port}"
        done = run_job(
            batchinfer,
            tmp_path,
            pushgateway={"url": url, "token": PASSWORD, "instance": "pod-0"},
            compat_names=True,
        )
    assert warnings(done.stderr) == []
    lines = [heard.line.rpartition(" ")[0] for heard in gateway.requests]
    live, end = "/metrics/job/doubling/instance/pod-0", "/metrics/job/doubling"
    assert (lines[0], lines[-2:]) == (f"PUT {live}", [f"POST {end}", f"DELETE {live}"])
    assert all(f"Authorization: Bearer {CANARY}\n" in heard.headers for heard in gateway.requests)
    assert not any(CANARY.encode() in heard.body for heard in gateway.requests)
    first = gateway.requests[0].body.decode()
    assert 'batchinfer_workers{state="starting"} 1.0\n' in first
    assert "\ninference_requests_total 0.0\n" in first


@pytest.mark.parametrize(
    ("gateway", "says"),
    [
        ({"url": "http://gateway:9091", "token": PASSWORD}, "would send its token over http"),
        ({"url": "https://a:1", "token": PASSWORD, "user": "x", "password": PASSWORD}, "more than one login"),
        ({"url": "https://a:1", "user": "x"}, "user and password need each other"),
        ({"url": "https://a:1", "token": "abc"}, "is a secret"),
        ({"url": "https://a:1", "token": f"{PASSWORD}\n"}, "another character that cannot be sent"),
        ({"url": "https://a:1", "user": "a:b", "password": PASSWORD}, "holds a colon"),
        ({"url": "http://a:1", "ca": "a.pem"}, "ca needs a url that begins with https://"),
        ({"url": "https://a:1", "ca": "in/"}, "observe.pushgateway.ca cannot be read"),
        ({"url": "https://a:1", "ca": "job.yaml"}, "no PEM certificates"),
    ],
)
def test_a_login_that_cannot_be_meant(tmp_path: Path, gateway: dict[str, str], says: str) -> None:
    """A secret in the open, two logins, half of one, and certificates that are none are refused at once."""
    write_shards(tmp_path / "in", [10])
    path = doubling_job(tmp_path, observe={"pushgateway": gateway})

    def begin() -> None:
        observe = load_job(str(path)).observe
        make_observers(observe, job="j", interactive=False, log_format="text", stream=None)

    with pytest.raises(JobFileError) as raised:
        begin()
    assert says in str(raised.value)
    assert CANARY not in str(raised.value)


def test_what_does_not_work_costs_a_warning(tmp_path: Path, batchinfer: Run) -> None:
    """A port that is taken, a folder that is missing and a gateway that is gone: a warning each, and the run
    ends as it would have."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        dead = free_address()
        done = run_job(
            batchinfer,
            tmp_path,
            listen=address,
            textfile="missing/a.prom",
            pushgateway={"url": f"http://{dead}", "every": 0.1},
        )
    assert sorted(warnings(done.stderr)) == [
        f"cannot listen on {address}: Address already in use; the run goes on and is not scraped",
        f"cannot push metrics to {dead}: Connection refused; tried again every 0.1 s; the run goes on",
        f"cannot write metrics to {tmp_path}/missing/a.prom: No such file or directory; the run goes on",
    ]
    done = run_job(batchinfer, tmp_path, listen="127.0.0.1:0", textfile="a.prom")
    assert warnings(done.stderr) == []
    said = next(json.loads(line) for line in done.stderr.splitlines())
    assert said["event"] == "listening"
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", said["url"])
    assert 'batchinfer_last_run_rows{instance="' in (tmp_path / "a.prom").read_text()


def test_ten_thousand_files_are_as_many_series_as_ten(tmp_path: Path, batchinfer: Run) -> None:
    """What a run pushes does not grow with its files, and names none of them."""
    (tmp_path / "lengths.py").write_text(
        "import pyarrow.compute as pc\n"
        "def length(rows):\n"
        "    return {'x': pc.cast(rows['size'], 'float32')}\n"
    )
    pushed: list[str] = []

    def answer(heard: Heard) -> tuple[int, bytes]:
        pushed.append(heard.body.decode())
        return 200, b""

    series = []
    with serving(answer) as gateway:
        for count in (10, 10_000):
            folder = tmp_path / f"files-{count}"
            folder.mkdir()
            for number in range(count):
                (folder / f"file-{number}.txt").write_bytes(b"x" * (number % 5))
            job = doubling_job(
                tmp_path,
                input={"path": str(folder), "format": "files"},
                preprocess=[{"python": {"function": "lengths:length", "columns": ["size"]}}],
                checkpoint={"unit_rows": 1000},
                output={"path": f"out-{count}/", "carry": ["path"]},
                observe={"pushgateway": {"url": f"http://127.0.0.1:{gateway.port}", "every": 0.1}},
            )
            done = batchinfer("run", str(job))
            assert done.returncode == 0, done.stderr
            live = [text for text in pushed if "batchinfer_rows_total" in text]
            series.append({line.rpartition(" ")[0] for line in live[-1].splitlines() if line[0] != "#"})
            assert not [text for text in pushed if "file-" in text]
            pushed.clear()
    assert series[0] == series[1]
    assert len(series[1]) < 100
