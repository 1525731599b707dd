"""`batchinfer export`: what the surroundings of a job need, made from the job."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from batchinfer.cli.arguments import Params, Sets, load
from batchinfer.errors import UsageError

NAME = "export"
app = typer.Typer(
    name=NAME, help="Print what the surroundings of a job need, made from the job.", no_args_is_help=True
)

_Job = Annotated[
    str | None,
    typer.Argument(metavar="[JOB]", help="The job file; without one, for every job.", show_default=False),
]


@app.command(name="grafana")
def grafana(job: _Job = None, *, param: Params = None, set_: Sets = None) -> None:
    """Print a Grafana dashboard, as JSON to import: progress, speed, where the time goes, errors, GPUs."""
    from batchinfer.telemetry.dashboard import as_json, dashboard

    name = load(job, param, set_).name if job else None
    typer.echo(as_json(dashboard(name)), nl=False)


@app.command(name="alerts")
def alerts(
    job: _Job = None,
    *,
    param: Params = None,
    set_: Sets = None,
    stalled_after: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="Without a batch.")
    ] = 600,
    no_success_after: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=0.001,
            help="Without a complete run; 26 hours let a nightly one end later than the night before.",
        ),
    ] = 93_600,
    failing: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Rows that fail. Default: half of the job's errors.max, or 1%."),
    ] = None,
    waiting: Annotated[
        str, typer.Option(metavar="SHARE", help="Time in which the devices do not compute.")
    ] = "50%",
    hold: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="How long each condition must hold; by default 0 to 15 minutes."
        ),
    ] = None,
) -> None:
    """Print alerting rules for Prometheus: stalled, failing rows, failed, no success, devices that wait, are
    slowed down or sick, a deadline in danger."""
    from batchinfer.telemetry.alerts import Thresholds, alert_rules, as_yaml

    loaded = load(job, param, set_) if job else None
    allowed = loaded.errors.max if loaded else None
    share = 0.01
    if failing is not None:
        share = _share("--failing", failing)
    elif isinstance(allowed, str) and allowed.endswith("%"):
        share = _share("errors.max", allowed) / 2
    thresholds = Thresholds(
        stalled_s=stalled_after,
        no_success_s=no_success_after,
        failing=share,
        waiting=_share("--waiting", waiting),
        hold_s=hold,
    )
    name = loaded.name if loaded else None
    typer.echo(as_yaml(alert_rules(name, thresholds), job=name, thresholds=thresholds), nl=False)


def _share(what: str, text: str) -> float:
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)%", text)
    if found is None or float(found[1]) > 100:  # noqa: PLR2004 - percent
        raise UsageError(f"{what} {text!r} is no share", hint="write it as 0% to 100%, such as 1%")
    return float(found[1]) / 100
