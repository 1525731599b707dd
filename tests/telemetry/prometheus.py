"""A real Pushgateway, Prometheus and Alertmanager on free ports, and what tests ask them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
READY_S = 20.0
CONFIG = """
global: {{scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}}
rule_files: [{rules}]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["{alertmanager}"]}}]}}]}}
scrape_configs:
  - {{job_name: gateway, honor_labels: true, static_configs: [{{targets: ["{gateway}"]}}]}}
"""
ALERTMANAGER = """
route: {receiver: nobody, group_wait: 0s}
receivers: [{name: nobody}]
"""


def free_address() -> str:
    """Return HOST:PORT that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def server(command: Sequence[str], *, ready: Callable[[], bool], folder: Path) -> Iterator[None]:
    """Run a server until the block ends; begin when it is ready. What it says is in NAME.log."""
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        until(ready, f"{command[0]} did not start", READY_S)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def answers(url: str) -> bool:
    """Tell whether somebody says yes there."""
    with suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
        return bool(answer.status == 200)
    return False


def until(found: Callable[[], T], otherwise: str, seconds: float = 30.0) -> T:
    """Return what is found, once it is something."""
    deadline = time.monotonic() + seconds
    while not (it := found()):
        if time.monotonic() > deadline:
            pytest.fail(otherwise)
        time.sleep(0.05)
    return it


class Monitoring:
    """The three servers, by their addresses."""

    def __init__(self, gateway: str, prometheus: str, alertmanager: str) -> None:
        self.gateway, self._prometheus, self._alertmanager = gateway, prometheus, alertmanager

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Return the instant vector of an expression."""
        address = f"http://{self._prometheus}/api/v1/query?{urllib.parse.urlencode({'query': promql})}"
        with urllib.request.urlopen(address, timeout=5) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        result: list[dict[str, Any]] = found["data"]["result"]
        return result

    def values(self, promql: str, label: str) -> dict[str, float]:
        """Return the values of an expression, by one label."""
        return {one["metric"].get(label, ""): float(one["value"][1]) for one in self.query(promql)}

    def alerts(self) -> list[dict[str, Any]]:
        """Return what Alertmanager has been told."""
        with urllib.request.urlopen(f"http://{self._alertmanager}/api/v2/alerts", timeout=5) as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found


@contextmanager
def monitoring(folder: Path, *, rules: Path) -> Iterator[Monitoring]:
    """Run all three: what is pushed is scraped four times a second, and alerts are judged as often."""
    gateway, prometheus, alertmanager = (free_address() for _ in range(3))
    (folder / "prometheus.yml").write_text(
        CONFIG.format(rules=rules, alertmanager=alertmanager, gateway=gateway)
    )
    (folder / "alertmanager.yml").write_text(ALERTMANAGER)
    with (
        server(
            ["prometheus-pushgateway", f"--web.listen-address={gateway}", "--persistence.file="],
            ready=lambda: answers(f"http://{gateway}/-/ready"),
            folder=folder,
        ),
        server(
            [
                "prometheus-alertmanager",
                "--config.file=alertmanager.yml",
                "--storage.path=alerts",
                f"--web.listen-address={alertmanager}",
                "--cluster.listen-address=",
            ],
            ready=lambda: answers(f"http://{alertmanager}/-/ready"),
            folder=folder,
        ),
        server(
            [
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=series",
                f"--web.listen-address={prometheus}",
            ],
            ready=lambda: answers(f"http://{prometheus}/-/ready"),
            folder=folder,
        ),
    ):
        yield Monitoring(gateway, prometheus, alertmanager)
