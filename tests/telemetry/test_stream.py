"""Output that cannot fail, whatever becomes of the other end."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from batchinfer.telemetry.stream import SafeStream

PROGRAM = """
import sys
from batchinfer.config.sections import ObserveOptions
from batchinfer.events import RunFinished, RunStarted, WorkerSaid
from batchinfer.telemetry import make_observers

for log_format in ("text", "json"):
    observers = make_observers(
        ObserveOptions(), job="j", interactive=sys.argv[1] == "live", log_format=log_format, stream=sys.stderr
    )
    events = [
        RunStarted(job="j", run="r", units_total=1, units_done=0, rows_total=1, rows_done=0, num_workers=1,
                   model="m", output="o"),
        *(WorkerSaid(worker=0, line="x" * 900) for _ in range(300)),
        RunFinished(exit_code=0, seconds=1.0, complete=True),
    ]
    for event in events:
        for observer in observers:
            observer.on_event(event)
    for observer in observers:
        observer.close()
print("went on")
"""


def run_with(stderr: str, *, display: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program above with a standard error made by a shell redirection."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {display} {stderr}', sys.executable, PROGRAM],
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("display", ["live", "lines"])
@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"])
def test_a_full_or_closed_log_changes_nothing(stderr: str, display: str) -> None:
    """A process whose standard error is full or closed goes on and exits with its own code."""
    done = run_with(stderr, display=display)
    assert (done.returncode, done.stdout) == (0, b"went on\n")


@pytest.mark.parametrize("display", ["live", "lines"])
def test_a_reader_who_left_changes_nothing(display: str) -> None:
    """With standard error into `head -1`, the process goes on and exits with its own code."""
    script = f'"$0" -c "$1" {display} 2>&1 >/dev/null | head -n 1 >/dev/null; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", script, sys.executable, PROGRAM], timeout=60, check=False)
    assert done.returncode == 0


def test_text_goes_out_in_order_after_what_was_buffered(tmp_path: Path) -> None:
    """What others printed before stands before."""
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        file.write("before\n")
        out = SafeStream(file)
        out.write("after ü\n")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "before\nafter ü\n"


def test_letters_that_the_stream_lacks_are_replaced(tmp_path: Path) -> None:
    """An ASCII log gets question marks, no error."""
    with (tmp_path / "log").open("w", encoding="ascii") as file:
        SafeStream(file).write("Grüße\n")
    assert (tmp_path / "log").read_bytes() == b"Gr??e\n"


def test_a_stream_without_a_file_works() -> None:
    """Captured streams have no descriptor and get the text all the same."""
    file = io.StringIO()
    out = SafeStream(file)
    out.write("text")
    assert (file.getvalue(), out.size(), out.isatty()) == ("text", (80, 24), False)


def test_no_stream_takes_everything() -> None:
    """A process started without standard error has None in its place."""
    out = SafeStream(None)
    out.write("text")
    assert out.encoding == "utf-8"


def test_a_closed_stream_takes_everything() -> None:
    """A stream closed before or after is no error."""
    file = io.StringIO()
    out = SafeStream(file)
    file.close()
    out.write("text")
    SafeStream(file).write("text")


def test_a_stream_that_does_not_block_gets_everything() -> None:
    """A pipe that somebody made non-blocking takes more than it holds, as the reader takes it out."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    text = "x" * 300_000
    found: list[int] = []

    def read() -> None:
        while data := os.read(read_fd, 4096):
            found.append(len(data))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(write_fd, "w") as file:
        SafeStream(file).write(text)
    reader.join()
    os.close(read_fd)
    assert sum(found) == len(text)
