"""A job file is code, but only the code that it names: no shell, no expression, no surprise of YAML."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import batchinfer
from batchinfer import registry
from batchinfer.config import load_job
from batchinfer.errors import BatchinferError, ExitCode, JobFileError
from batchinfer.storage import open_store
from tests.conftest import Run, doubling_job, write_shards

LEAST = "job: a\ninput: {path: d}\nmodel: {backend: simulated}\noutput: {path: o}\n"


def refused(text: str, folder: Path) -> str:
    """Load a job file that must be refused, and return the report."""
    (folder / "job.yaml").write_text(text)
    with pytest.raises(JobFileError) as caught:
        load_job(folder / "job.yaml")
    assert caught.value.exit_code == ExitCode.CONFIG
    return str(caught.value)


ENTRIES = [
    *("os:system", "builtins:eval", "builtins:exec", "subprocess:run", "posix:system", "shutil:rmtree"),
    *("importlib:import_module", "os.path:exists", "__main__:x", "sys:exit", "pickle:loads", "code:interact"),
    *("../x:y", "/etc/x:y", "x/y:z", ".x:y", "..x:y", "x..y:z", "x.:y", "x:y.z", "x:y()", "x:", ":y", "x"),
    *("x:y:z", "x:y\n", "x :y", "x;y:z", "x:__import__('os')", "x\0:y", "${env:HOME}:y", "{{ x }}:y"),
]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("place", ["model", "preprocess", "postprocess"])
def test_an_entry_names_a_module_of_the_job_or_a_package(tmp_path: Path, entry: str, place: str) -> None:
    """Python's own modules, paths, expressions and anything but `module:name` are refused, unimported."""
    document: dict[str, Any] = {
        "job": "a",
        "input": {"path": "d"},
        "model": {"backend": "simulated"},
        "output": {"path": "o"},
    }
    if place == "model":
        document["model"] = {"backend": "python", "entry": entry}
    else:
        document[place] = [{"python": entry}]
    (tmp_path / "x.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "job.yaml").write_text(json.dumps(document))
    with pytest.raises(JobFileError) as caught:
        load_job(tmp_path / "job.yaml")
    assert caught.value.exit_code == ExitCode.CONFIG
    assert "\0" not in str(caught.value)


def test_the_working_directory_is_no_place_for_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: Path
) -> None:
    """A module that merely lies where the command is started is not the job's."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "planted.py").write_text(f"import os\nos.mkdir({str(trap)!r})\ndef f(rows): ...\n")
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "job").mkdir()
    text = LEAST + "preprocess: [python: 'planted:f']\n"
    assert "there is no module 'planted'" in refused(text, tmp_path / "job")


def test_validating_imports_nothing_of_the_job(tmp_path: Path, trap: Path) -> None:
    """A job is checked without running the modules that it names."""
    (tmp_path / "own_step.py").write_text(f"import os\nos.mkdir({str(trap)!r})\ndef f(rows): ...\n")
    (tmp_path / "job.yaml").write_text(LEAST + "preprocess: [python: 'own_step:f']\n")
    load_job(tmp_path / "job.yaml")
    assert "own_step" not in sys.modules


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir(trap) }}",
        "{{ text.__class__.__base__ }}",
        "{{ self.__init__.__globals__ }}",
        "{% for c in ().__class__.__bases__ %}{{ c }}{% endfor %}",
        "{{ ''|attr('__class__') }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tmp_path: Path, template: str, trap: Path) -> None:
    """A prompt template that reaches for Python's inside fails; nothing of it comes out."""
    write_shards(tmp_path / "in", [3])
    job = doubling_job(tmp_path, model={"backend": "simulated", "seconds_per_batch": 0})
    document = json.loads(job.read_text())
    document["preprocess"] = [
        {"prompt": {"template": template.replace("trap", repr(str(trap))), "to": "said"}}
    ]
    document["model"]["signature"] = {"inputs": {"said": "string[?]"}, "outputs": {"y": "string[?]"}}
    document["errors"], document["output"] = {"max": 3}, {}
    root = f"memory://{tmp_path.name}/out"
    document["input"]["path"], document["output"]["path"] = str(tmp_path / "in"), root
    failed: int | None = None
    with suppress(BatchinferError):
        failed = batchinfer.run_job(document).rows_error
    # Refused as a whole, or every row of it failed.
    assert failed in {None, 3}
    store = open_store(root, {})
    assert not [entry for entry in store.entries(root) if b"<class" in store.read(entry.uri)]


def test_a_row_is_only_text_to_a_template(tmp_path: Path, trap: Path) -> None:
    """What a row holds is not read as a template, whatever it looks like."""
    cls = registry.load("preprocessors", "prompt")
    step = cls(cls.Options.model_validate_json('{"template": "say: {{ text }}", "to": "said"}'))
    hostile = "{{ 7 * 7 }}{% include '/etc/passwd' %}"
    rows = pa.RecordBatch.from_pydict({"text": [hostile]})
    step.output_schema(rows.schema)
    assert step.encode(rows).rows["said"].to_pylist() == [f"say: {hostile}"]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LEAST + "job: b\n", "is given twice"),
        (LEAST.replace("{path: d}", "{path: d, path: e}"), "is given twice"),
        (LEAST + BOMB, "alias"),
        (LEAST + "labels: &x {a: b}\n", "anchor"),
        (LEAST + "labels: {<<: {a: b}}\n", "merge key"),
        (LEAST + "labels: !!python/object/apply:os.mkdir [TRAP]\n", "tag"),
        (LEAST + "labels: !!python/name:os.system ''\n", "tag"),
        (LEAST + "description: !!binary aGk=\n", "tag"),
        (LEAST + "labels: {country: NO, at: 12:30:00, version: 1.10}\n", "labels.version"),
        (LEAST.replace("job: a", "job: 1.10"), "job: must be text"),
        (LEAST + "errors: {max: 1e400}\n", "64-bit"),
        (LEAST + "description: '" + "x" * 2**20 + "'\n", "is larger than 1024 KiB"),
        (LEAST + "labels: " + "[" * 2000 + "]" * 2000 + "\n", "deep"),
        (LEAST + "---\njob: b\n", "document"),
        (LEAST + "? [a]\n: b\n", "plain text"),
    ],
)
def test_yaml_has_no_surprises(tmp_path: Path, trap: Path, text: str, says: str) -> None:
    """What a YAML reader would take in silence (a key twice, an alias that grows, a tag that runs code, a
    number for a version) is refused, at once."""
    began = time.monotonic()
    report = refused(text.replace("TRAP", str(trap)), tmp_path)
    assert says in report
    assert time.monotonic() - began < 5


def test_words_of_old_yaml_are_texts(tmp_path: Path) -> None:
    """`NO`, `12:30:00` and `0777` are what they look like, and not false, 45000 and 511."""
    (tmp_path / "job.yaml").write_text(LEAST + "labels: {a: NO, b: 12:30:00, c: 0777, d: on, e: 1_000}\n")
    labels = load_job(tmp_path / "job.yaml").labels
    assert list(labels.values()) == ["NO", "12:30:00", "0777", "on", "1_000"]


def test_a_hostile_job_file_ends_with_78(tmp_path: Path, batchinfer: Run) -> None:
    """The command says what is wrong and ends, also for a file that would fill the memory."""
    (tmp_path / "job.yaml").write_text(LEAST + BOMB)
    done = batchinfer("validate", str(tmp_path / "job.yaml"))
    assert done.returncode == 78
    assert "alias" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        LEAST.replace("backend: simulated", "path: '${env:CANARY_SET}', backend: onnx"),
        LEAST.replace("backend: simulated", "backend: python, entry: '${env:CANARY_SET}'"),
        LEAST.replace("backend: simulated", "backend: '${env:CANARY_SET}'"),
        LEAST.replace("job: a", "job: '${env:CANARY_SET}'"),
        LEAST + "preprocess: [python: '${env:CANARY_SET}']\n",
        LEAST + "preprocess: [tokenize: {column: t, tokenizer: '${env:CANARY_SET}'}]\n",
        LEAST + "description: '${env:CANARY_SET}'\n",
        LEAST + "labels: {a: '${env:CANARY_SET}'}\n",
        LEAST.replace("{path: d}", "{path: d, where: '${env:CANARY_SET}'}"),
        LEAST.replace("backend: simulated", "backend: python, entry: 'x:y', args: {a: '${env:CANARY_SET}'}"),
    ],
)
def test_the_environment_reaches_secrets_and_places_of_data_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """No variable chooses code, a model or anything that is stored with the output."""
    monkeypatch.setenv("CANARY_SET", "x:y")
    (tmp_path / "x.py").write_text("def y(rows): ...\n")
    report = refused(text, tmp_path)
    assert "may stand in" in report or "unknown backend '${env:CANARY_SET}'" in report


@pytest.mark.parametrize("place", ["secret", "path"])
def test_a_variable_that_is_not_set_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A missing variable is not an empty one."""
    monkeypatch.delenv("CANARY_NOT_SET", raising=False)
    value = "{path: '${env:CANARY_NOT_SET}'}"
    if place == "secret":
        value = "{path: d, storage_options: {secret: '${env:CANARY_NOT_SET}'}}"
    report = refused(LEAST.replace("{path: d}", value), tmp_path)
    assert "the environment variable CANARY_NOT_SET is not set" in report


def test_a_secret_may_not_stand_in_a_job_file(tmp_path: Path) -> None:
    """A password that is spelled out is refused, without being repeated."""
    for options in (
        "secret: hunter2hunter2",
        "account_key: hunter2hunter2",
        "proxy_url: 'http://u:hunter2hunter2@h'",
    ):
        report = refused(LEAST.replace("{path: d}", f"{{path: d, storage_options: {{{options}}}}}"), tmp_path)
        assert "${env:NAME}" in report
        assert "hunter2" not in report
