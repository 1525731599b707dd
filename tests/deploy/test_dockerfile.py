"""The Dockerfile, read line by line: there is no engine here to build it with."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1].strip()) for line in joined.splitlines()
    ]


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str]]:
    """The instructions of our Dockerfile."""
    return instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def of(found: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in found if instruction == name]


def test_only_known_instructions(found: list[tuple[str, str]]) -> None:
    """Nothing is fetched from a URL (ADD), and there are no instructions of old (MAINTAINER)."""
    assert {name for name, _ in found} <= {
        *("FROM", "ARG", "RUN", "COPY", "WORKDIR", "USER", "ENV", "ENTRYPOINT", "CMD")
    }


def test_base_images_have_a_pinned_tag(found: list[tuple[str, str]]) -> None:
    """Every stage begins with Python 3.11 slim of one Debian release; never `latest`."""
    bases = [rest.split()[0] for rest in of(found, "FROM")]
    assert set(bases) == {"python:3.11-slim-bookworm"}


def test_the_process_is_not_root(found: list[tuple[str, str]]) -> None:
    """The last user is a number other than 0, the one that the Kubernetes manifests name."""
    user = of(found, "USER")[-1]
    manifest = yaml.safe_load((ROOT / "k8s-jobs/job/job.yaml").read_text(encoding="utf-8"))
    context = manifest["spec"]["template"]["spec"]["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert int(user.split(":")[0]) > 0
    last = max(number for number, (name, _) in enumerate(found) if name == "USER")
    assert [name for name, _ in found[last:] if name in {"RUN", "COPY"}] == []


def test_the_command_is_batchinfer_behind_an_init(found: list[tuple[str, str]]) -> None:
    """In exec form, so that signals arrive; the manifests' `command` finds the same init."""
    assert json.loads(of(found, "ENTRYPOINT")[-1]) == ["tini", "--", "batchinfer"]
    assert json.loads(of(found, "CMD")[-1]) == ["--help"]
    assert any("install --yes --no-install-recommends tini" in rest for rest in of(found, "RUN"))


def test_what_is_copied_exists_and_is_sent(found: list[tuple[str, str]]) -> None:
    """Every source is in the tree and let through by .dockerignore, which lets through nothing else."""
    copied = {source for rest in of(found, "COPY") for source in rest.split()[:-1]}
    bound = {
        source
        for rest in of(found, "RUN")
        for options in re.findall(r"--mount=type=bind,(\S+)", rest)
        if "from=" not in options
        for source in re.findall(r"source=([^,\s]+)", options)
    }
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line.removeprefix("!") for line in rules if line.startswith("!")}
    assert copied | bound == sent
    assert all((ROOT / source).exists() for source in sent)


def test_the_build_has_what_it_needs(found: list[tuple[str, str]]) -> None:
    """The files that pyproject.toml refers to are copied before the wheel is built."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = {project["project"]["readme"], *project["project"].get("license-files", ()), "pyproject.toml"}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    copied = [source for rest in of(found, "COPY") for source in rest.split()[:-1]]
    assert all(any(fnmatch.fnmatch(source, name) for source in copied) for name in needed)


def test_no_layer_keeps_a_cache_or_a_secret(found: list[tuple[str, str]]) -> None:
    """Package lists and wheels are not left behind, no script is piped from the network, no secret is set."""
    for rest in of(found, "RUN"):
        assert "apt-get update" not in rest or "rm -rf /var/lib/apt/lists/*" in rest
        assert not re.search(r"pip (install|wheel)(?!.*--no-cache-dir)", rest)
        assert not re.search(r"\b(curl|wget|sudo)\b", rest)
    for rest in (*of(found, "ENV"), *of(found, "ARG")):
        assert not re.search(r"(?i)password|secret|token|credential", rest)


def test_versions_are_those_of_ci(found: list[tuple[str, str]]) -> None:
    """The installation is held to constraints.txt."""
    (install,) = [rest for rest in of(found, "RUN") if "pip install" in rest]
    assert "--constraint /constraints.txt" in install


@pytest.mark.parametrize(
    ("text", "instruction"),
    [("FROM a\nRUN x \\\n && y\n", ("RUN", "x   && y")), ("# c\nuser 0\n", ("USER", "0"))],
)
def test_the_reader_reads(text: str, instruction: tuple[str, str]) -> None:
    """Comments are left out, continued lines joined, names made equal."""
    assert instructions(text)[-1] == instruction
