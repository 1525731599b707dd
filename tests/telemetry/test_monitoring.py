"""A job in several processes, one of which is killed, as Prometheus and Alertmanager see it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.conftest import Run, doubling_job, parts_of, write_shards
from tests.runner.commands import start, wait_for_parts
from tests.telemetry.prometheus import Monitoring, monitoring, until

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "k8s-jobs" / "monitoring"
UNITS, UNIT_ROWS, HELD = 10, 100, 800
ENDS = re.compile("batchinfer_last_(run|success)_")
MODEL = f"""
import pathlib, time
import numpy as np

class Doubling:
    '''Gives no number for some rows, and does not begin with the last units before it may.'''
    inputs = {{"x": "float32[?]"}}
    outputs = {{"y": "float32[?]"}}

    def __call__(self, batch):
        time.sleep(0.05)
        while batch["x"].max() >= {HELD / 2} and not pathlib.Path(__file__).with_name("gate").exists():
            time.sleep(0.05)
        return {{"y": np.where(batch["x"] % 25 == 0, np.nan, batch["x"] * 2)}}
"""


def promtool(*arguments: str, text: str | None = None) -> None:
    """Have promtool find nothing to say."""
    done = subprocess.run(
        ["promtool", *arguments], input=text, capture_output=True, text=True, check=False, cwd=FOLDER
    )
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    """Return every expression of the dashboard, as Grafana would send it for one job."""
    found = re.findall(r'"expr": (".*"),$', (FOLDER / "dashboard.json").read_text(), re.MULTILINE)
    values = {"$job": "watched", "$instance": ".*", "$__rate_interval": "1m"}
    texts = [json.loads(text) for text in found]
    for name, value in values.items():
        texts = [text.replace(name, value) for text in texts]
    assert len(texts) > 20
    assert not [text for text in texts if "$" in text]
    return texts


def test_what_is_kept_is_what_is_exported(batchinfer: Run) -> None:
    """The rules and the dashboard in k8s-jobs/ are those that `export` prints."""
    assert batchinfer("export", "alerts").stdout == (FOLDER / "alerts.yaml").read_text()
    assert batchinfer("export", "grafana").stdout == (FOLDER / "dashboard.json").read_text()


def test_the_rules_do_what_they_say(require: Callable[[str], str], tmp_path: Path, batchinfer: Run) -> None:
    """Promtool reads the rules and the expressions of the dashboard; each alert fires in its case and in no
    other. Rules for one job look at that job alone, with its budget."""
    require("promtool")
    promtool("check", "rules", "alerts.yaml")
    promtool("test", "rules", "alerts_test.yaml")
    records = [{"record": f"e:{number}", "expr": expr} for number, expr in enumerate(expressions())]
    (tmp_path / "e.yaml").write_text(json.dumps({"groups": [{"name": "e", "rules": records}]}))
    promtool("check", "rules", str(tmp_path / "e.yaml"))
    write_shards(tmp_path / "in", [10])
    job = doubling_job(tmp_path, errors={"max": "4%"})
    own = batchinfer("export", "alerts", str(job), "--hold", "90", "--stalled-after", "7200").stdout
    promtool("check", "rules", "/dev/stdin", text=own)
    assert "> 0.02\n" in own
    assert "> 7200\n" in own
    assert own.count("for: 90s") == own.count("alert: ")
    used = re.findall(
        r"(?:batchinfer[_:]\w+|push_time_seconds)(?:\{[^}]*\})?",
        "".join(re.findall(r"expr: \|-\n((?: {10}.*\n)+)", own)),
    )
    assert used
    assert [text for text in used if 'job="doubling"' not in text] == []
    own = batchinfer("export", "grafana", str(job)).stdout
    assert json.loads(own)["title"] == "batchinfer: doubling"
    assert batchinfer("export", "alerts", "--failing", "2").returncode == 2


def test_a_dashboard_has_a_place_for_each_panel() -> None:
    """No two panels overlap, none leaves the grid, and each has a number of its own."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def watched_job(folder: Path, gateway: str) -> str:
    """Write the job: eight hundred rows that can be done, and two hundred that wait."""
    write_shards(folder / "in", [UNIT_ROWS] * UNITS)
    (folder / "held.py").write_text(MODEL)
    path = doubling_job(
        folder,
        job="watched",
        input={"where": "id != 7"},
        model={"backend": "python", "entry": "held:Doubling", "seconds_per_batch": None},
        errors={"max": "100%", "check_finite": True},
        compute={"devices": "cpu"},
        limits={"price_per_device_hour": 2.5},
        observe={"pushgateway": {"url": f"http://{gateway}", "every": 0.2}},
    )
    document = json.loads(path.read_text())
    del document["model"]["seconds_per_batch"]
    path.write_text(json.dumps(document))
    return str(path)


def rows_of(files: set[str], folder: Path) -> dict[str, float]:
    """Count the rows of some parts: those with a result and those that failed."""
    errors = [error for name in files for error in pq.read_table(folder / name)["_error"].to_pylist()]
    failed = sum(error is not None for error in errors)
    return {"ok": len(errors) - failed, "error": failed}


def test_a_job_is_watched(tmp_path: Path, require: Callable[[str], str], batchinfer: Run) -> None:
    """Two pods of a job push, one of them with three workers; the other is killed and comes again. What PromQL
    sums up is what lies in the output, and at the end in its manifest. When the model hangs, Alertmanager
    hears of it for either pod; every panel has something to show; and what stays is one small group."""
    for program in ("prometheus", "prometheus-pushgateway", "prometheus-alertmanager"):
        require(program)
    rules, out = tmp_path / "rules.yaml", tmp_path / "out"
    rules.write_text(batchinfer("export", "alerts", "--stalled-after", "2", "--hold", "0.5").stdout)
    with monitoring(tmp_path, rules=rules) as seen:
        job = watched_job(tmp_path, seen.gateway)
        killed = start("run", job, "--shard", "1/2")
        wait_for_parts(out, 1)
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=30)
        before = set(parts_of(out))
        pods = [
            start("run", job, "--shard", "1/2"),
            start("run", job, "--shard", "0/2", "--set", "compute.workers_per_device=3"),
        ]
        try:
            wait_for_parts(out, HELD // UNIT_ROWS)
            check_live(seen, out, before)
            check_alert(seen)
            check_panels(seen)
            (tmp_path / "gate").touch()
            for pod in pods:
                assert pod.wait(60) == 0, pod.communicate()[1]
        finally:
            for pod in pods:
                pod.kill()
                pod.communicate()
        seal = json.loads((out / "_SUCCESS").read_text())
        check_end(seen, json.loads((out / seal["manifest"]).read_text()))


def check_live(seen: Monitoring, out: Path, before: set[str]) -> None:
    """What the two pods say to have committed is what lies there, less what the killed one had done."""
    done = rows_of(set(parts_of(out)) - before, out)
    by_outcome = 'sum by (outcome) (batchinfer_rows_total{job="watched",outcome!="filtered"})'
    until(lambda: seen.values(by_outcome, "outcome") == done, f"never {done}: {seen.query(by_outcome)}")
    assert done["error"] > 5
    workers = 'batchinfer_workers{job="watched",state="running"}'
    assert seen.values(workers, "instance") == {"index-0": 3, "index-1": 1}
    assert seen.values('batchinfer_rows_planned{job="watched"}', "instance")["index-0"] == 500
    live = 'batchinfer:live{job="watched"} and on (job, instance) time() - push_time_seconds < 60'
    until(lambda: set(seen.values(live, "instance")) == {"index-0", "index-1"}, "the rules see no live pods")
    # A killed pod says nothing; its group was there for Prometheus to see, and was taken over.
    assert seen.query('min_over_time(batchinfer_running{instance="index-1"}[1m]) == 1')


def check_alert(seen: Monitoring) -> None:
    """Both pods have finished no batch for two seconds."""

    def told() -> dict[str, dict[str, str]]:
        alerts = [one for one in seen.alerts() if one["labels"]["alertname"] == "BatchinferStalled"]
        found = {one["labels"]["instance"]: one["annotations"] for one in alerts}
        return found if len(found) > 1 else {}

    annotations = until(told, "Alertmanager never heard that the job stalls")
    assert annotations["index-0"]["summary"].startswith("watched on index-0 has finished no batch for")
    assert "batchinfer status OUTPUT" in annotations["index-0"]["description"]


def check_panels(seen: Monitoring) -> None:
    """Every expression of the dashboard has a value, but for GPUs that are not there and ends to come."""
    empty = [expr for expr in expressions() if not seen.query(expr)]
    assert [expr for expr in empty if "batchinfer_gpu_" not in expr and not ENDS.search(expr)] == []


def check_end(seen: Monitoring, manifest: dict[str, Any]) -> None:
    """The totals are the manifest's; the pods' groups are gone, and with them the alert."""
    totals = {
        "ok": manifest["rows"] - manifest["rows_error"],
        "error": manifest["rows_error"],
        "filtered": manifest["rows_planned"] - manifest["rows"],
    }
    assert totals == {"ok": 1000 - 20 - 1, "error": 20, "filtered": 1}
    by_outcome = 'batchinfer_last_run_rows{job="watched"}'
    until(lambda: seen.values(by_outcome, "outcome") == totals, f"never {totals}: {seen.query(by_outcome)}")
    assert seen.values('batchinfer_last_run_exit_code{job="watched"}', "instance") == {"": 0}
    assert seen.query('time() - batchinfer_last_success_timestamp_seconds{job="watched"} < 60')
    gone = 'batchinfer_running{job="watched"}'
    until(lambda: not seen.query(gone), "the groups of the pods are still there")
    until(lambda: not seen.query('ALERTS{alertname="BatchinferStalled"}'), "the alert never ends")
    assert [expr for expr in expressions() if ENDS.search(expr) and not seen.query(expr)] == []
