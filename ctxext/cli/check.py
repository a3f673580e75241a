"""`ctxext check`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctxext.cli import console
from ctxext.cli.options import Device, Json

if TYPE_CHECKING:
    from ctxext.measure.run import Evaluation
    from ctxext.records import Record


def check(
    baseline: Annotated[
        Path, typer.Option(help="Records to compare with: a folder, or one file of it.")
    ],
    grid: Annotated[
        Path | None,
        typer.Option(help="A YAML file of the cells; default: those of the baseline."),
    ] = None,
    sigma: Annotated[
        float, typer.Option(help="Standard errors by which a value may move, paired.")
    ] = 3.0,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="By how much it may move instead: a perplexity in nats per token, others on their "
            "own scale."
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Then put the new records into the baseline.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="Show cells that are as they were too.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new records; default: a temporary one.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure the cells of a baseline again: exit code 1 where one got worse or is missing."""
    from ctxext.advise import check as checks
    from ctxext.advise.baseline import requests
    from ctxext.advise.progress import Progress
    from ctxext.errors import UsageError
    from ctxext.models.loading import Source
    from ctxext.request.evaluation import EvaluationRequest
    from ctxext.request.grid import read_grid
    from ctxext.request.lists import parse_methods

    for name, value in (("--sigma", sigma), ("--tolerance", tolerance)):
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"bad value {value} for {name}: give a number from 0 on")
    if update and baseline.is_file():
        raise UsageError(f"--update of one file {str(baseline)!r}: give its folder")

    def asked(before: Sequence[Record], where: Path) -> Sequence[EvaluationRequest]:
        found: Sequence[EvaluationRequest]
        if grid is None:
            found = requests(before, where, device)
        else:
            source, rope = Source("tiny", device=device), parse_methods([])
            base = EvaluationRequest(source, rope, (), (), out=where, force=True)
            found = read_grid(grid, base)
        console.announce(request.source.name for request in found)
        return found

    def run(work: Evaluation) -> None:
        console.quieten()
        with Progress() as progress, console.terminable():
            work.monitor = progress.monitor()
            work.run()

    outcome = checks.check_by(asked, baseline, sigma, tolerance, out, run)
    if update:
        checks.take(outcome, baseline)
    if as_json:
        for line in checks.to_json(outcome):
            typer.echo(json.dumps(line, ensure_ascii=False, allow_nan=False))
    else:
        if (shown := checks.to_rich(outcome, every)) is not None:
            console.screen().print(shown, crop=False)
        typer.echo(outcome.summary())
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"### ctxext check\n\n{outcome}\n")
    for refused in outcome.refused:
        typer.echo(refused, err=True)
    raise typer.Exit(console.OK if outcome.passed or update else console.FAILED)
