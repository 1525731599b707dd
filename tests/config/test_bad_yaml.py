"""What YAML allows and a job file does not, each with the message that the user reads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from batchinfer.config import load_job
from batchinfer.errors import JobFileError

HEAD = """\
job: a
input: {path: data}
model: {path: m.onnx}
output: {path: out}
"""

CASES: dict[str, tuple[str | bytes, list[str]]] = {
    "duplicate key": (
        "job: a\ninput:\n  path: data\n  path: other\nmodel: {path: m.onnx}\noutput: {path: out}\n",
        [":4:3  input.path: is given twice; the first is in line 3"],
    ),
    "duplicate section": (
        HEAD + "job: b\n",
        [":5:1  job: is given twice; the first is in line 1"],
    ),
    "alias and anchor": (
        HEAD + "labels: &l {a: b}\nerrors: *l\n",
        [
            ":5:9  labels: `&l` is a YAML anchor; remove it",
            ":6:9  errors: `*l` is a YAML alias; repeat the value instead",
        ],
    ),
    "merge key": (
        HEAD + "batching:\n  <<: {size: 3}\n",
        [":6:3  batching: has the YAML merge key `<<`; repeat the values instead"],
    ),
    "python tag": (
        HEAD + "description: !!python/object/apply:os.system [ls]\n",
        [
            (
                ":5:14  description: has the YAML tag 'tag:yaml.org,2002:python/object/apply:os.system'; "
                "tags are refused"
            )
        ],
    ),
    "harmless tag": (
        HEAD + "description: !!str 3\n",
        [":5:14  description: has the YAML tag 'tag:yaml.org,2002:str'; tags are refused"],
    ),
    "several documents": (
        HEAD + "---\njob: b\n",
        [":5:1: holds several YAML documents; a job file is one"],
    ),
    "empty file": (
        "",
        [":1:1: is empty; `batchinfer init` writes a job file to begin with"],
    ),
    "only comments": (
        "# nothing\n",
        [":1:1: is empty; `batchinfer init` writes a job file to begin with"],
    ),
    "not a mapping": (
        "- a\n- b\n",
        [":1:1: must be a mapping of sections such as `job:` and `input:`"],
    ),
    "a tab": (
        HEAD + "batching:\n\tsize: 3\n",
        [":6:1: a tab cannot indent YAML; use spaces"],
    ),
    "unfinished flow": (
        "job: a\ninput: {path: data\n",
        [":3:1: is not YAML: expected ',' or '}', but got '<stream end>'"],
    ),
    "colon in a plain text": (
        "job: a\ndescription: a: b\n",
        [
            (
                ":2:15: is not YAML: mapping values are not allowed here; is the line before it "
                "unfinished, or does a text with `: ` need quotes?"
            )
        ],
    ),
    "indentation": (
        "job: a\n  input: {path: x}\n",
        [
            (
                ":2:8: is not YAML: mapping values are not allowed here; is the line before it "
                "unfinished, or does a text with `: ` need quotes?"
            )
        ],
    ),
    "not UTF-8": (
        b"job: a\ndescription: caf\xe9\n",
        [":2:17: is not UTF-8: byte 0xe9; save it as UTF-8"],
    ),
    "NUL byte": (
        b"job: a\x00b\n",
        [":1:7: holds the control character '\\x00'; remove it"],
    ),
    "escaped NUL": (
        'job: a\ndescription: "a\\0b"\n',
        [
            ":1:1  input: is required",
            ":1:1  model: is required",
            ":1:1  output: is required",
            ":2:14  description: holds a NUL or half of a surrogate pair; remove it",
        ],
    ),
    "impossible escape": (
        'job: "\\UFFFFFFFF"\n',
        [":1:1: is not YAML: an escape in double quotes names no character"],
    ),
    "too large": (
        b"#" * (1024 * 1024 + 1),
        [":1:1: is larger than 1024 KiB: this is no job file"],
    ),
    "too deep": (
        "job: a\nlabels: " + "[" * 40 + "]" * 40,
        [":2:10  labels[0]: is nested deeper than 32 levels"],
    ),
    "number beyond 64 bits": (
        HEAD + "batching: {size: 99999999999999999999}\n",
        [":5:18  batching.size: 99999999999999999999 does not fit a 64-bit number"],
    ),
    "key that is a list": (
        HEAD + "labels: {[a]: b}\n",
        [":5:10  labels: has a key that is not plain text"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_report(case: str, job_file: Callable[[str | bytes], str]) -> None:
    """Every problem is told in one report: its place, its key, what is wrong and the way out."""
    text, expected = CASES[case]
    with pytest.raises(JobFileError) as caught:
        load_job(job_file(text))
    assert str(caught.value).split("\n") == [f"job.yaml{line}" for line in expected]
