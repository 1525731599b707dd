"""`batchinfer status --watch`: looks again and again, drawn in place on a terminal, a line each elsewhere."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import typer
from rich.text import Text

from batchinfer.cli.pace import Pace, pace_of
from batchinfer.cli.status import facts
from batchinfer.errors import NoInputError, UnavailableError
from batchinfer.telemetry import figures
from batchinfer.telemetry.fitting import LABEL, Part, bar, labelled
from batchinfer.telemetry.live import Painter
from batchinfer.telemetry.stream import SafeStream

if TYPE_CHECKING:
    from batchinfer.runner.inspection import OutputStatus, ProcessStatus
    from batchinfer.runner.lookout import Look, Lookout

_MIN_BAR, _MAX_BAR, _MAX_WIDTH = 10, 50, 160
_MAX_PROCESSES = 8
_LEISURE = 10.0
"""How many times longer than a look the pause after it is: a listing of many parts costs something."""


def follow(lookout: Lookout, root: str, *, every_s: float, as_json: bool) -> None:
    """Look until the output is complete. A store that is away is looked at again; an output that no run has
    begun is waited for."""
    screen = _Screen(root) if not as_json and _can_redraw() else None
    with _CtrlC() as ctrl_c:
        while True:
            began = time.monotonic()
            look, trouble = _look(lookout)
            pace = pace_of(look, now=time.time()) if look is not None else Pace()
            is_over = look is not None and look.status.state == "complete"
            if screen is not None:
                screen.show(look, pace, trouble, last=is_over)
            elif as_json:
                typer.echo(json.dumps(facts(look, pace) if look is not None else _nothing(root, trouble)))
            else:
                typer.echo(_line(look, pace, root, trouble))
            if is_over:
                return
            ctrl_c.check()
            time.sleep(max(every_s, _LEISURE * (time.monotonic() - began)))


class _CtrlC:
    """Remembers that Ctrl-C was pressed: what is raised while Python clears something away is lost."""

    def __init__(self) -> None:
        self._is_pressed = False

    def check(self) -> None:
        """Raise KeyboardInterrupt where it was pressed."""
        if self._is_pressed:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _press(self, *_: object) -> None:
        self._is_pressed = True
        raise KeyboardInterrupt


def _can_redraw() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _look(lookout: Lookout) -> tuple[Look | None, str]:
    """Look, or say why nothing can be seen."""
    try:
        return lookout.look(), ""
    except NoInputError:
        return None, "waiting: no run has begun here"
    except UnavailableError as error:
        return None, f"the store cannot be asked: {figures.plain(error.message)}"


def _nothing(root: str, trouble: str) -> dict[str, Any]:
    return {"output": root, "state": "unknown", "trouble": trouble}


def _line(look: Look | None, pace: Pace, root: str, trouble: str) -> str:
    """Return a look as one line of key=value."""
    if look is None:
        return f"output={json.dumps(figures.plain(root))} {trouble}"
    status = look.status
    silent = sum(process.is_silent for process in status.processes)
    pairs = {
        "rows": f"{status.rows_done}/{status.rows_total}",
        "pct": figures.percent(_ratio(status)).removesuffix(" %"),
        "rate": None if pace.rows_per_second is None else figures.rate(pace.rows_per_second).replace(" ", ""),
        "eta": None if pace.eta_s is None else f"{pace.eta_s:.0f}s",
        "units": f"{status.units_done}/{status.units_total}",
        "at_work": len(status.processes) - silent,
        "silent": silent or None,
        "last_commit": None if pace.last_commit_s is None else f"{pace.last_commit_s:.0f}s",
        "state": json.dumps(status.state) if " " in status.state else status.state,
    }
    return " ".join(f"{key}={value}" for key, value in pairs.items() if value is not None)


class _Screen:
    """Looks on a terminal, drawn over each other; the last one stays."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._out = SafeStream(sys.stdout)
        self._painter = Painter(self._out)

    def show(self, look: Look | None, pace: Pace, trouble: str, *, last: bool) -> None:
        """Draw a look."""
        columns, height = self._out.size()
        width, ascii_only = min(columns - 1, _MAX_WIDTH), self._painter.ascii_only
        if look is None:
            lines = [labelled("output", [figures.plain(self._root)]), labelled("", [trouble])]
        else:
            lines = _frame(look.status, pace, width=width, ascii_only=ascii_only)
        lines = lines[: max(1, height - 1)]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        if last:
            self._painter.finish(lines, above=[])
        else:
            # The cursor waits below, so that what the shell says after Ctrl-C stands there too.
            self._painter.draw([*lines, Text("")], above=[])


def _frame(status: OutputStatus, pace: Pace, *, width: int, ascii_only: bool) -> list[Text]:
    job = Text(figures.plain(status.job), style="bold")
    job.append(f"   plan {status.plan}", style="not bold dim")
    if status.generation > 1:
        job.append(f"   generation {status.generation}", style="not bold dim")
    job.append(f"   {status.state}", style="not bold cyan")
    at_work = [process for process in status.processes if not process.is_silent]
    silent = [process for process in status.processes if process.is_silent]
    return [
        job,
        _rows(status, pace, width, ascii_only=ascii_only),
        _time(status, pace, width),
        labelled(
            "units",
            [
                f"{figures.count(status.units_done)} / {figures.count(status.units_total)} committed",
                (1, f"{figures.short(status.num_bytes)}B"),
            ],
            width=width,
        ),
        *(_processes("at work", at_work, "not dim")),
        *(_processes("silent", silent, "not dim yellow")),
        *_suspects(status),
        labelled("output", [figures.plain(status.output)]),
    ]


def _rows(status: OutputStatus, pace: Pace, width: int, *, ascii_only: bool) -> Text:
    parts: list[Part] = [
        (0, f"{figures.percent(_ratio(status)):>7}"),
        (1, f"{figures.short(status.rows_done)} / {figures.short(status.rows_total)}"),
        (2, "" if pace.rows_per_second is None else figures.rate(pace.rows_per_second)),
    ]
    text = labelled("rows", [(0, " " * _MIN_BAR), *parts], width=width)
    room = max(0, min(_MIN_BAR + max(0, width - text.cell_len), _MAX_BAR, width - LABEL))
    return labelled("rows", [bar(_ratio(status), room, ascii_only=ascii_only), *parts], width=width)


def _ratio(status: OutputStatus) -> float:
    return status.rows_done / status.rows_total if status.rows_total else 1.0


def _time(status: OutputStatus, pace: Pace, width: int) -> Text:
    parts: list[str | Text | Part] = []
    if pace.eta_s is not None:
        text = figures.duration(pace.eta_s)
        if pace.eta_least_s is not None and pace.eta_most_s is not None:
            least, most = figures.duration(pace.eta_least_s), figures.duration(pace.eta_most_s)
            text += f" ({least} to {most})" if least != most else ""
        parts.append(f"ETA {text}")
    elif status.state != "complete":
        is_left = all(process.is_silent for process in status.processes)
        parts.append(Text("nobody is at work", style="not dim yellow") if is_left else "ETA --")
    if pace.last_commit_s is not None:
        parts.append((1, f"last commit {figures.duration(pace.last_commit_s)} ago"))
    return labelled("time", parts, width=width)


def _processes(label: str, processes: list[ProcessStatus], style: str) -> list[Text]:
    shown = processes[:_MAX_PROCESSES]
    lines = [
        labelled(
            label if not number else "",
            [
                Text(figures.plain(process.owner), style=style),
                f"last sign {figures.duration(process.silent_s)} ago",
            ],
        )
        for number, process in enumerate(shown)
    ]
    if len(processes) > len(shown):
        lines.append(labelled("", [f"and {len(processes) - len(shown)} more"]))
    return lines


def _suspects(status: OutputStatus) -> list[Text]:
    if not status.suspects:
        return []
    some = ", ".join(str(unit) for unit in status.suspects[:10])
    return [labelled("suspect", [f"units {some}: a process died while it had them"])]
