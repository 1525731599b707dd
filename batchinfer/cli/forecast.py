"""`batchinfer plan JOB --sample N`: the forecast of a run, from some of its rows."""

from __future__ import annotations

import json
import tempfile
from typing import TYPE_CHECKING

import typer

from batchinfer.cli.arguments import load, this_machine

if TYPE_CHECKING:
    from batchinfer.runner.forecast import Forecast, Line, Range
    from batchinfer.runner.prepare import Prepared

_MINUTE_S, _HOUR_S = 60, 3600
_JOULES_PER_WATT_HOUR = 3600


def foretell(
    prepared: Prepared, job: str, params: list[str] | None, sets: list[str] | None, *, num_rows: int
) -> Forecast:
    """Run a sample of what is left into a folder of its own, and remember what it foretells."""
    from batchinfer.runner.forecast import forecast, remember
    from batchinfer.runner.sampling import sample_run
    from batchinfer.runner.standby import Standby

    with Standby() as standby, tempfile.TemporaryDirectory(prefix="batchinfer-sample-") as folder:
        overrides = [
            *(sets or []),
            f"output.path={json.dumps(folder)}",
            "output.storage_options={}",
            "output.commit=conditional",
            "input.incremental=false",
            "errors.max='100%'",
            "compute.claims=static",
            "limits={}",
        ]
        stand_in = load(job, params, overrides)
        sampled = sample_run(prepared, stand_in, this_machine(), num_rows=num_rows, standby=standby)
    made = forecast(prepared, sampled)
    remember(prepared, made)
    return made


def show_forecast(made: Forecast) -> None:
    """Print a forecast, a line for each number of devices: on CPUs, of machines like this one."""
    what = "machine" if made.on_cpu else "device"
    typer.echo(f"forecast   from {made.sampled_rows:,} rows on {_count(made.sampled_devices, what)}")
    sizes = f"{size_of(made.input_bytes)} in, about {size_of(made.output_bytes)} out"
    typer.echo(f"  left     {made.rows:,} rows, {sizes}")
    for line in made.lines:
        typer.echo(f"  {_count(line.devices, what):<10} {_told(line)}")
    # No sample of one device tells how far a store, or the cores beside the devices, will do for more.
    typer.echo(f"  each {what} is taken to have cores, memory and a store as the one here has")
    for warning in made.warnings:
        typer.echo(f"  warning  {warning}")
    for hint in made.hints:
        typer.echo(f"  hint     {hint}")


def _count(devices: int, what: str) -> str:
    return f"{devices} {what}{'' if devices == 1 else 's'}"


def _told(line: Line) -> str:
    hours = _range(line.device_hours, ".3g")
    cost = f"   cost {_range(line.cost, '.3g')}" if line.cost is not None else ""
    energy = "not known"
    if line.energy_joules is not None:
        energy = f"{_range(line.energy_joules.times(1 / _JOULES_PER_WATT_HOUR), '.3g')} Wh"
    times = f"{_time(line.seconds.expected)} ({_time(line.seconds.low)} to {_time(line.seconds.high)})"
    return f"{times}   device-hours {hours}{cost}   energy {energy}"


def _range(value: Range, spec: str) -> str:
    return f"{value.expected:{spec}} ({value.low:{spec}} to {value.high:{spec}})"


def _time(seconds: float) -> str:
    """Return a duration in the words of people: two units of it, where it is longer than a minute."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f} s"
    if seconds < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)} min {int(seconds % _MINUTE_S)} s"
    return f"{int(seconds // _HOUR_S)} h {int(seconds % _HOUR_S // _MINUTE_S)} min"


def size_of(count: object) -> str:
    """Return bytes with a binary prefix."""
    size = float(count)  # type: ignore[arg-type]
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":  # noqa: PLR2004 - binary prefixes
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")
