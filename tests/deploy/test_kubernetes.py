"""The manifests in k8s-jobs: valid, restricted, and agreeing with the exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from batchinfer.config import load_job
from batchinfer.errors import ExitCode

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "k8s-jobs"
KUBERNETES = "1.33"
MANIFESTS = ("base/serviceaccount.yaml", "job/job.yaml", "cronjob/cronjob.yaml")
IN_A_POD = {
    "S3_ENDPOINT": "http://s3",
    "S3_KEY": "key",
    "S3_SECRET": "secret",
    "JOB_COMPLETION_INDEX": "3",
}

# Section by section what the table of exit codes says; signals are what the kernel makes of 128 + N.
EXPECTED = {
    ExitCode.OK: None,
    ExitCode.CRASH: "Count",
    ExitCode.USAGE: "FailJob",
    ExitCode.DATA_QUALITY: "FailJob",
    ExitCode.DATA: "FailJob",
    ExitCode.NO_INPUT: "FailJob",
    ExitCode.FINGERPRINT: "FailJob",
    ExitCode.UNAVAILABLE: "Count",
    ExitCode.INTERNAL: "Count",
    ExitCode.DEVICE: "Count",
    ExitCode.UNSAFE_STORE: "FailJob",
    ExitCode.IO: "Count",
    ExitCode.INTERRUPTED: "Ignore",
    ExitCode.POISON: "FailIndex",
    ExitCode.AUTH: "FailJob",
    ExitCode.CONFIG: "FailJob",
    ExitCode.EMPTY: "Count",
}
SIGNALS = (130, 134, 137, 139, 143)
DISRUPTED = [{"type": "DisruptionTarget", "status": "True"}]


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return found


def job_specs() -> dict[str, dict[str, Any]]:
    """Return the Job's spec, and that of the Jobs which the CronJob makes."""
    return {
        "job": manifest("job/job.yaml")["spec"],
        "cronjob": manifest("cronjob/cronjob.yaml")["spec"]["jobTemplate"]["spec"],
    }


KINDS = pytest.mark.parametrize("kind", ["job", "cronjob"])


def decide(
    spec: Mapping[str, Any],
    *,
    code: int,
    conditions: Sequence[Mapping[str, str]] = (),
    container: str = "main",
) -> str | None:
    """Return what a Job does about a pod that ended, as the Kubernetes documentation has it.

    Rules are evaluated in order and the first that matches decides; a failure that none matches
    counts towards the back-off limit. A rule on exit codes looks only at containers that failed.
    """
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onPodConditions" in rule:
            wanted = [(wish["type"], wish.get("status", "True")) for wish in rule["onPodConditions"]]
            if any((found["type"], found["status"]) in wanted for found in conditions):
                return str(rule["action"])
        else:
            wish = rule["onExitCodes"]
            if code == 0 or wish.get("containerName", container) != container:
                continue
            if (code in wish["values"]) == (wish["operator"] == "In"):
                return str(rule["action"])
    return "Count" if code else None


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name: str) -> None:
    """Each manifest has the fields that Kubernetes knows, all that it requires and no other."""
    kubernetes_validate.validate(manifest(name), KUBERNETES, strict=True)


def test_every_manifest_is_tested() -> None:
    """A manifest that is added must be added here."""
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml")}
    others = {name for name in found if name.endswith(("kustomization.yaml", "config/job.yaml"))}
    others |= {name for name in found if name.startswith("monitoring/")}  # rules for Prometheus
    assert found - others == set(MANIFESTS)


def test_the_validator_finds_a_misspelt_field() -> None:
    """The check above can fail."""
    broken = manifest("job/job.yaml")
    broken["spec"]["backoffLimitPerIndexx"] = 6
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@KINDS
@pytest.mark.parametrize("code", list(ExitCode))
def test_each_exit_code_has_its_consequence(kind: str, code: ExitCode) -> None:
    """What the table of exit codes promises is what the policy does, for every code there is."""
    assert decide(job_specs()[kind], code=code) == EXPECTED[code]


@KINDS
@pytest.mark.parametrize("code", SIGNALS)
def test_a_signal_counts_unless_the_node_went_away(kind: str, code: int) -> None:
    """A crash counts as a failure; the same signal with a disruption behind it does not."""
    spec = job_specs()[kind]
    assert decide(spec, code=code) == "Count"
    assert decide(spec, code=code, conditions=DISRUPTED) == "Ignore"


@KINDS
def test_a_disruption_decides_before_the_exit_code(kind: str) -> None:
    """Whatever a pod says while its node goes away, another one tries again."""
    for code in ExitCode:
        if code != ExitCode.OK:
            assert decide(job_specs()[kind], code=code, conditions=DISRUPTED) == "Ignore"


@KINDS
def test_a_sidecar_decides_nothing(kind: str) -> None:
    """Exit codes are those of the main container."""
    assert decide(job_specs()[kind], code=ExitCode.CONFIG, container="istio-proxy") == "Count"


@KINDS
def test_the_policy_keeps_the_rules_of_the_interface(kind: str) -> None:
    """What Kubernetes demands beyond the schema: restarts, modes, order and range of the codes."""
    spec = job_specs()[kind]
    rules = spec["podFailurePolicy"]["rules"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["completionMode"] == "Indexed"
    assert "backoffLimitPerIndex" in spec
    assert spec["maxFailedIndexes"] <= spec["completions"]
    env = {item["name"]: item.get("value") for item in spec["template"]["spec"]["containers"][0]["env"]}
    assert env["JOB_COMPLETIONS"] == str(spec["completions"])
    assert len(rules) <= 20
    names = {container["name"] for container in spec["template"]["spec"]["containers"]}
    for rule in rules:
        if "onExitCodes" in rule:
            values = rule["onExitCodes"]["values"]
            assert values == sorted(set(values))
            assert 0 not in values
            assert rule["onExitCodes"]["containerName"] in names
    assert spec["activeDeadlineSeconds"] > 0, "ignored failures would go on for ever"


def test_the_cron_job_runs_one_at_a_time() -> None:
    """Two nights never run at once, and a retry ends on the day on which its run began."""
    spec = manifest("cronjob/cronjob.yaml")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    minute, hour, *_ = spec["schedule"].split()
    start_s = int(hour) * 3600 + int(minute) * 60
    latest_s = spec["startingDeadlineSeconds"] + spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert start_s + latest_s < 24 * 3600


def test_both_kinds_run_the_same_pod() -> None:
    """But for the command line, a nightly pod is the pod of a single run."""
    job, cron = (specs["template"]["spec"] for specs in job_specs().values())
    for pod in (job, cron):
        pod["containers"][0].pop("args")
    assert cron["containers"][0].pop("command") == ["tini", "--", "sh", "-c"]
    assert job == cron


def containers(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.get(kind, ())


def breaches(pod: Mapping[str, Any]) -> list[str]:
    """Return what the `restricted` Pod Security Standard refuses in a pod."""
    own = pod.get("securityContext", {})
    volumes = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [f"volume {v['name']}" for v in pod.get("volumes", ()) if not (v.keys() - {"name"}) <= volumes]
    found += ["sysctls"] if own.get("sysctls") else []
    for container in containers(pod):
        mine = container.get("securityContext", {})
        both = {**own, **mine}
        capabilities = mine.get("capabilities", {})
        rules = {
            "privileged": not mine.get("privileged"),
            "allowPrivilegeEscalation": mine.get("allowPrivilegeEscalation") is False,
            "runAsNonRoot": both.get("runAsNonRoot") is True,
            "runAsUser": both.get("runAsUser", 1) != 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") in {"RuntimeDefault", "Localhost"},
            "capabilities.drop": "ALL" in capabilities.get("drop", ()),
            "capabilities.add": set(capabilities.get("add", ())) <= {"NET_BIND_SERVICE"},
            "procMount": mine.get("procMount", "Default") == "Default",
            "hostPort": not any(port.get("hostPort") for port in container.get("ports", ())),
        }
        found += [f"{container['name']}: {rule}" for rule, kept in rules.items() if not kept]
    return found


@KINDS
def test_pods_are_restricted(kind: str) -> None:
    """Pods pass the strictest Pod Security Standard."""
    assert breaches(job_specs()[kind]["template"]["spec"]) == []


@pytest.mark.parametrize(
    ("change", "breach"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "volume v"),
        ({"securityContext": {"runAsNonRoot": True}}, "main: seccompProfile"),
        ({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}, "main: runAsNonRoot"),
    ],
)
def test_the_rules_find_a_breach(change: Mapping[str, Any], breach: str) -> None:
    """The check above can fail."""
    assert breach in breaches({**job_specs()["job"]["template"]["spec"], **change})


@KINDS
def test_pods_go_further_than_they_must(kind: str) -> None:
    """A root that nobody can write to, no token of the cluster, bounded resources, a scratch folder."""
    pod = job_specs()[kind]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert manifest("base/serviceaccount.yaml")["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] >= 15
    (main,) = containers(pod)
    assert main["name"] == "main"
    assert main["image"] == "batchinfer:0.1.0"
    assert main["securityContext"]["readOnlyRootFilesystem"] is True
    assert main["resources"]["requests"].keys() == {"cpu", "memory", "ephemeral-storage"}
    assert main["resources"]["limits"].keys() == {"cpu", "memory", "ephemeral-storage"}
    (scratch,) = [volume["name"] for volume in pod["volumes"] if "emptyDir" in volume]
    mounts = {mount["name"]: mount for mount in main["volumeMounts"]}
    folders = {entry["name"]: entry.get("value") for entry in main["env"]}
    assert folders["HOME"] == folders["TMPDIR"] == mounts.pop(scratch)["mountPath"]
    assert all(mount["readOnly"] for mount in mounts.values())


@KINDS
def test_secrets_come_by_reference(kind: str) -> None:
    """No manifest holds a key: the job file names variables, and these name a Secret."""
    (main,) = containers(job_specs()[kind]["template"]["spec"])
    referred = {entry["name"] for entry in main["env"] if "secretKeyRef" in entry.get("valueFrom", {})}
    text = (FOLDER / "base/config/job.yaml").read_text(encoding="utf-8")
    assert {name for name in IN_A_POD if f"${{env:{name}}}" in text} == referred | {"JOB_COMPLETION_INDEX"}


def test_the_job_file_is_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job in the ConfigMap loads, with the environment of its pod, and names its own group of metrics."""
    for name, value in IN_A_POD.items():
        monkeypatch.setenv(name, value)
    job = load_job(FOLDER / "base/config/job.yaml", params={"day": "2026-10-01"})
    assert job.observe.pushgateway is not None
    assert job.observe.pushgateway.instance == "product-embeddings-3"
    assert job.output.path == "s3://lake/embeddings/dt=2026-10-01/"


def test_the_command_line_fits() -> None:
    """The arguments of the pods are options that the command has."""
    from typer.main import get_command

    from batchinfer.cli.app import app

    runs = get_command(app).commands["run"]  # type: ignore[attr-defined]
    known = {name for parameter in runs.params for name in parameter.opts}
    (main,) = containers(job_specs()["job"]["template"]["spec"])
    (nightly,) = containers(job_specs()["cronjob"]["template"]["spec"])
    assert main["args"][:2] == ["run", "/etc/batchinfer/job.yaml"]
    used = [word for word in (*main["args"], *nightly["args"][0].split()) if word.startswith("--")]
    assert set(used) == {"--param", "--log-format"} <= known
    assert nightly["args"][0].startswith("exec batchinfer run /etc/batchinfer/job.yaml ")


def build(folder: Path) -> list[dict[str, Any]]:
    """Build an overlay as kubectl does."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@KINDS
def test_kustomize_builds_a_whole(kind: str) -> None:
    """Each folder gives a service account, the job file under a hashed name, and the Job that uses both."""
    built = {found["kind"]: found for found in build(FOLDER / kind)}
    assert built.keys() == {"ServiceAccount", "ConfigMap", "Job" if kind == "job" else "CronJob"}
    for found in built.values():
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    name = built["ConfigMap"]["metadata"]["name"]
    assert name.startswith("batchinfer-job-")
    assert list(built["ConfigMap"]["data"]) == ["job.yaml"]
    assert f'"configMap": {{"name": "{name}"}}' in json.dumps(built)


@KINDS
def test_the_gpu_component_gives_a_gpu(kind: str, tmp_path: Path) -> None:
    """With the component, the pod asks for a GPU and tolerates the taint of GPU nodes."""
    base = os.path.relpath(FOLDER, tmp_path.resolve())
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": "inference",
        "resources": [f"{base}/{kind}"],
        "components": [f"{base}/gpu"],
        "images": [{"name": "batchinfer", "newName": "registry.example.com/ml/batchinfer"}],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    (found,) = [item for item in build(tmp_path) if item["kind"] in {"Job", "CronJob"}]
    kubernetes_validate.validate(found, KUBERNETES, strict=True)
    spec = found["spec"] if kind == "job" else found["spec"]["jobTemplate"]["spec"]
    pod = spec["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["containers"][0]["image"] == "registry.example.com/ml/batchinfer:0.1.0"
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert breaches(pod) == []


def test_the_table_in_the_readme_is_the_policy() -> None:
    """What the README says of each exit code is what the Job does."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    said = {
        int(code): "Ignore"
        if "does not count" in then
        else "FailIndex"
        if "index" in then
        else "FailJob"
        if "fails" in then
        else "Count"
        for codes, then in rows
        for code in codes.replace(",", " ").split()
        if code.isdecimal()
    }
    assert said == {
        code: action for code, action in EXPECTED.items() if code not in {ExitCode.OK, ExitCode.EMPTY}
    }
