"""Job files with a mistake in their meaning, each with the message that the user reads."""

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
    "unknown key with a near sibling": (
        HEAD.replace("input: {path: data}", "input: {path: data, limt: 3}"),
        [":2:21  input.limt: unknown key; did you mean 'limit'?"],
    ),
    "unknown key that lives in another section": (
        HEAD + "compute: {size: 3}\n",
        [":5:11  compute.size: unknown key; did you mean `batching.size`?"],
    ),
    "unknown key from another tool": (
        HEAD + "batch_size: 32\n",
        [":5:1  batch_size: unknown key; `batch_size` is called `batching.size`"],
    ),
    "unknown key without a guess": (
        HEAD + "errors: {zzz: 1}\n",
        [
            (
                ":5:10  errors.zzz: unknown key (known: check_finite, keep_input, max, max_per_partition, "
                "on_error, retry, to)"
            )
        ],
    ),
    "unknown section": (
        HEAD + "chekpoint: {}\n",
        [":5:1  chekpoint: unknown key; did you mean 'checkpoint'?"],
    ),
    "missing sections": (
        "job: a\n",
        [":1:1  input: is required", ":1:1  model: is required", ":1:1  output: is required"],
    ),
    "missing key in a section": (
        HEAD.replace("input: {path: data}", "input: {format: csv}"),
        [":2:1  input.path: is required"],
    ),
    "text where a number belongs": (
        HEAD + "batching:\n  size: large\n",
        [":6:3  batching.size: must be a number of bytes such as 1073741824, 512MiB or 2GB, got 'large'"],
    ),
    "number with underscores": (
        HEAD + "batching: {window_rows: 1_000}\n",
        [
            (
                ":5:12  batching.window_rows: must be 'auto' or a whole number of at least 1, got '1_000' (text); "
                "write 1000"
            )
        ],
    ),
    "fraction where a whole number belongs": (
        HEAD + "batching: {window_rows: 1.5}\n",
        [":5:12  batching.window_rows: must be 'auto' or a whole number of at least 1, got the number 1.5"],
    ),
    "number out of range": (
        HEAD + "compute: {readers: 0}\n",
        [":5:11  compute.readers: must be 'auto' or a whole number of at least 1, got the number 0"],
    ),
    "YAML 1.1 truth is text": (
        HEAD + "preprocess:\n  - tokenize: {column: t, tokenizer: t.json, truncate: yes}\n",
        [":6:46  preprocess[0].tokenize.truncate: must be true or false, got 'yes' (text)"],
    ),
    "number where text belongs": (
        HEAD.replace("model: {path: m.onnx}", "model: {path: m.onnx, version: 1.10}"),
        [':3:23  model.version: must be text, got the number 1.10; quote it: "1.10"'],
    ),
    "truth where text belongs": (
        "job: true\ninput: {path: data}\nmodel: {path: m.onnx}\noutput: {path: out}\n",
        [':1:1  job: must be text, got true; quote it: "true"'],
    ),
    "a bad word": (
        HEAD + "batching: {by: row}\n",
        [
            (
                ":5:12  batching.by: must be 'auto', 'rows', 'tokens' or 'bytes', got 'row' (text); "
                "did you mean 'rows'?"
            )
        ],
    ),
    "a mapping where a list belongs": (
        HEAD + "preprocess:\n  tokenize: {column: t}\n",
        [":5:1  preprocess: must be a list of steps, got a mapping; begin each with `- `"],
    ),
    "a list where a mapping belongs": (
        HEAD.replace("input: {path: data}", "input: [data]"),
        [":2:1  input: must be a mapping, got a list of 1"],
    ),
    "a wrong item in a list": (
        HEAD.replace("output: {path: out}", "output: {path: out, carry: [id, 3]}"),
        [':4:33  output.carry[1]: must be text, got the number 3; quote it: "3"'],
    ),
    "a wrong value in a mapping": (
        HEAD.replace("output: {path: out}", "output: {path: out, columns: {score: 32}}"),
        [':4:31  output.columns.score: must be text, got the number 32; quote it: "32"'],
    ),
    "a path that is a number": (
        HEAD.replace("input: {path: data}", "input: {path: [data, 7]}"),
        [':2:22  input.path[1]: must be text, got the number 7; quote it: "7"'],
    ),
    "unknown step": (
        HEAD + "preprocess:\n  - tokenise: {column: t}\n",
        [
            (
                ":6:5  preprocess[0].tokenise: unknown preprocess step 'tokenise'; did you mean "
                "'tokenize'? (known: image, python, tokenize)"
            )
        ],
    ),
    "step of the other list": (
        HEAD + "preprocess:\n  - softmax\n",
        [
            (
                ":6:5  preprocess[0]: unknown preprocess step 'softmax' (known: image, python, "
                "tokenize); it is a step of `postprocess`"
            )
        ],
    ),
    "step with two names": (
        HEAD + "preprocess:\n  - tokenize:\n    column: t\n",
        [
            (
                ":7:5  preprocess[0].column: a step has one name; indent 'column' below 'tokenize', or "
                "begin it with `- `"
            )
        ],
    ),
    "step that is a number": (
        HEAD + "preprocess: [3]\n",
        [":5:14  preprocess[0]: must be a step such as `- name: {...}`, got the number 3"],
    ),
    "step without its options": (
        HEAD + "preprocess: [tokenize]\n",
        [":5:14  preprocess[0].column: is required", ":5:14  preprocess[0].tokenizer: is required"],
    ),
    "step with a value but no shorthand": (
        HEAD + "preprocess:\n  - tokenize: text\n",
        [":6:5  preprocess[0].tokenize: must be a mapping of options, got 'text' (text)"],
    ),
    "nested options": (
        HEAD + "preprocess:\n  - image: {crops: [{width: 1, hight: 2}, {width: x}]}\n",
        [
            ":6:32  preprocess[0].image.crops[0].hight: unknown key; did you mean 'height'?",
            ":6:44  preprocess[0].image.crops[1].width: must be a whole number, got 'x' (text)",
        ],
    ),
    "unknown format": (
        HEAD.replace("input: {path: data}", "input: {path: data, format: parqet}"),
        [
            (
                ":2:21  input.format: unknown input format 'parqet'; did you mean 'parquet'? (known: "
                "csv, parquet)"
            )
        ],
    ),
    "format that is no text": (
        HEAD.replace("input: {path: data}", "input: {path: data, format: 3}"),
        [":2:21  input.format: must be one of csv, parquet, got the number 3"],
    ),
    "paths of two formats": (
        HEAD.replace("input: {path: data}", "input: {path: [a.csv, b.jsonl]}"),
        [":2:1  input.format: the paths look like csv and jsonl; say which format"],
    ),
    "backend that cannot be guessed": (
        HEAD.replace("model: {path: m.onnx}", "model: {path: m.bin}"),
        [
            (
                ":3:1  model.backend: cannot be told from the model's path; say one of endpoint, onnx, "
                "python, torch, transformers"
            )
        ],
    ),
    "neither path nor backend": (
        HEAD.replace("model: {path: m.onnx}", "model: {version: v1}"),
        [
            (
                ":3:1  model.backend: is required where `model.path` does not tell it; one of endpoint, "
                "onnx, python, torch, transformers"
            )
        ],
    ),
    "output inside the input": (
        HEAD.replace("output: {path: out}", "output: {path: data/out}"),
        [":4:10  output.path: lies in `input.path`: a rerun would read its own output"],
    ),
    "output is the input": (
        HEAD.replace("output: {path: out}", "output: {path: ./data/}"),
        [":4:10  output.path: is the folder of `input.path`: a rerun would read its own output"],
    ),
    "output around the input": (
        HEAD.replace("output: {path: out}", "output: {path: .}"),
        [":4:10  output.path: contains `input.path`: a rerun would read its own output"],
    ),
    "output matched by the glob": (
        "job: a\ninput: {path: s3://b/*/*.parquet}\nmodel: {path: m.onnx}\noutput: {path: s3://b/out}\n",
        [":4:10  output.path: lies in `input.path`: a rerun would read its own output"],
    ),
    "column written twice": (
        HEAD.replace("output: {path: out}", "output: {path: out, carry: [a, a]}"),
        [":4:21  output.carry: names 'a' more than once"],
    ),
    "result that is also carried": (
        HEAD.replace("output: {path: out}", "output: {path: out, carry: [a], columns: {a: int64}}"),
        [":4:43  output.columns.a: is also carried from the input; give the result another name"],
    ),
    "share that is no share": (
        HEAD + "errors: {max: 0.1}\n",
        [":5:10  errors.max: must be a share from 0% to 100% such as '0.1%', got 0.1"],
    ),
    "share above everything": (
        HEAD + "errors: {max: 101%}\n",
        [":5:10  errors.max: must be a share from 0% to 100% such as '0.1%', got '101%'"],
    ),
    "job name": (
        "job: a/b\ninput: {path: data}\nmodel: {path: m.onnx}\noutput: {path: out}\n",
        [":1:1  job: must be letters, digits, '.', '_' and '-', at most 63 of them, got 'a/b'"],
    ),
    "sha256": (
        HEAD.replace("model: {path: m.onnx}", "model: {path: m.onnx, sha256: abc}"),
        [":3:23  model.sha256: must be 64 lower-case hex digits"],
    ),
    "device": (
        HEAD + "compute: {devices: [gpu0]}\n",
        [":5:11  compute.devices: must list 'cpu' or devices such as 'cuda:0', got 'gpu0'"],
    ),
    "entry in the standard library": (
        HEAD.replace("model: {path: m.onnx}", "model: {backend: python, entry: 'os:system'}"),
        [":3:26  model.entry: 'os' is Python's own; name a module of the job's folder or a package"],
    ),
    "entry in builtins": (
        HEAD.replace("model: {path: m.onnx}", "model: {backend: python, entry: 'builtins:eval'}"),
        [(":3:26  model.entry: 'builtins' is Python's own; name a module of the job's folder or a package")],
    ),
    "entry that is a path": (
        HEAD.replace("model: {path: m.onnx}", "model: {backend: python, entry: '../x:y'}"),
        [":3:26  model.entry: must look like `module:name`, got '../x:y'"],
    ),
    "entry that is nowhere": (
        HEAD.replace("model: {path: m.onnx}", "model: {backend: python, entry: 'nowhere_at_all:y'}"),
        [":3:26  model.entry: there is no module 'nowhere_at_all' in the job's folder or installed"],
    ),
    "environment in code": (
        HEAD.replace("model: {path: m.onnx}", "model: {backend: python, entry: '${env:HOME}:y'}"),
        [
            (
                ":3:26  model.entry: ${env:HOME} may stand in storage_options, endpoints and data paths "
                "only; use ${param:NAME} here"
            )
        ],
    ),
    "environment in plain text": (
        HEAD + "description: ${env:HOME}\n",
        [
            (
                ":5:1  description: ${env:HOME} may stand in storage_options, endpoints and data paths "
                "only; use ${param:NAME} here"
            )
        ],
    ),
    "environment that is not set": (
        HEAD.replace("input: {path: data}", "input: {path: 's3://${env:NO_SUCH_BUCKET}/x'}"),
        [":2:9  input.path: the environment variable NO_SUCH_BUCKET is not set"],
    ),
    "parameter without a value": (
        HEAD.replace("input: {path: data}", "input: {path: 'dt=${param:day}'}"),
        [
            (
                ":2:9  input.path: parameter 'day' has no value; give --param day=VALUE or a default "
                "under `params`"
            )
        ],
    ),
    "parameter that nobody uses": (
        HEAD + "params: {day: 3}\n",
        [":5:10  params.day: is never used; write ${param:day} where it belongs"],
    ),
    "parameter with a bad name": (
        HEAD + "params: {my-day: 3}\n",
        [":5:10  params.my-day: a parameter's name has letters, digits and `_` only"],
    ),
    "shell variable": (
        HEAD + "description: from ${HOME}\n",
        [
            (
                ":5:1  description: '${HOME}' is no substitution; write ${env:HOME} or ${param:HOME}, or "
                "$${ for the text ${"
            )
        ],
    ),
    "secret in the file": (
        HEAD.replace(
            "input: {path: data}", "input: {path: data, storage_options: {secret_access_key: AKIA123}}"
        ),
        [
            (
                ":2:39  input.storage_options.secret_access_key: is a secret, and the job is stored with "
                "its output; write ${env:NAME} instead"
            )
        ],
    ),
    "password in a URL": (
        HEAD + "observe: {pushgateway: {url: 'http://me:hunter2@host:9091'}}\n",
        [
            (
                ":5:25  observe.pushgateway.url: holds a password or a signature, and the job is stored "
                "with its output; write ${env:NAME}"
            )
        ],
    ),
    "signature in a path": (
        HEAD.replace("input: {path: data}", "input: {path: 'az://c/x?sig=abc'}"),
        [
            (
                ":2:9  input.path: holds a password or a signature, and paths are shown and stored; use "
                "storage_options"
            )
        ],
    ),
    "pushgateway without scheme": (
        HEAD + "observe: {pushgateway: {url: 'host:9091'}}\n",
        [":5:25  observe.pushgateway.url: must be an http:// or https:// URL"],
    ),
    "a newer format": (
        HEAD + "version: 2\n",
        [":5:1  version: must be 1, got the number 2"],
    ),
    "terminal escapes in a key": (
        HEAD + '"\\e[31mred": 1\n',
        [
            (
                ":5:1  \\x1b[31mred: unknown key (known: batching, checkpoint, compute, description, "
                "errors, input, job, labels, limits, model, observe, output, params, postprocess, preprocess, "
                "version)"
            )
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_whole_report(case: str, job_file: Callable[[str | bytes], str]) -> None:
    """Every problem is told in one report: its place, its key, what is wrong and the way out."""
    text, expected = CASES[case]
    with pytest.raises(JobFileError) as caught:
        load_job(job_file(text))
    assert str(caught.value).split("\n") == [f"job.yaml{line}" for line in expected]
