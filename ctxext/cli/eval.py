"""`ctxext eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctxext.cli import console
from ctxext.cli.options import (
    TASK_NAMES,
    Attn,
    Batch,
    Device,
    DeviceMap,
    Dtype,
    Json,
    Lengths,
    LoadIn,
    Methods,
    Model,
    Out,
    OwnScaling,
    Revision,
    Tokens,
    TrainLen,
    Trust,
    listed,
    shared,
    source_of,
)


def evaluate(
    context: typer.Context,
    length: Lengths = [],  # noqa: B006
    model: Model = "tiny",
    method: Methods = [],  # noqa: B006
    task: Annotated[list[str], listed("task", autocompletion=TASK_NAMES)] = ["ppl"],  # noqa: B006
    data: Annotated[str | None, shared("data")] = None,
    limit: Annotated[int | None, shared("limit")] = None,
    tokens: Tokens = None,
    seed: Annotated[list[str], listed("seed")] = ["0"],  # noqa: B006
    grid: Annotated[
        Path | None,
        typer.Option(help="A YAML file of models, methods, lengths, tasks, and other options."),
    ] = None,
    attn: Attn = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: Batch = None,
    launcher: Annotated[
        str | None,
        typer.Option(metavar="ray[:ADDRESS]", help="Cells as Ray tasks, here or on a cluster."),
    ] = None,
    out: Out = Path("results"),
    force: Annotated[bool, typer.Option("--force", help="Redo finished cells.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the cells, with estimated time and memory; nothing is written.",
        ),
    ] = False,
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    load_in: LoadIn = None,
    device_map: DeviceMap = None,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Measure methods at lengths: every combination, beside the unpatched model."""
    from ctxext.errors import UsageError
    from ctxext.request.evaluation import EvaluationRequest
    from ctxext.request.texts import request_of

    if grid is None and not length:
        raise UsageError("missing --len: give lengths such as --len 512,4k, or a --grid")
    base = request_of(
        source_of(context),
        method,
        length,
        task,
        data,
        seed,
        limit=limit,
        tokens=tokens,
        batch_size=batch_size,
        out=out,
        force=force,
    )
    requests: tuple[EvaluationRequest, ...] = (base,)
    if grid is not None:
        from ctxext.request.grid import read_grid

        _refuse_beside_grid(context)
        requests = read_grid(grid, base)
    console.announce(request.source.name for request in requests)
    from ctxext.measure.run import Evaluation

    evaluation = Evaluation(requests)
    if dry_run:
        return console.print_estimates(evaluation, as_json)
    if launcher is not None:
        from ctxext.measure.launch import parse_launcher

        evaluation.launcher = parse_launcher(launcher)
    again = "the same command goes on"
    raise typer.Exit(console.run(evaluation, as_json, again, evaluation.refused))


def _refuse_beside_grid(context: typer.Context) -> None:
    """A UsageError for an option whose values the grid file has."""
    from ctxext.errors import UsageError
    from ctxext.request.options import LISTS

    for key, one in LISTS.items():
        source = context.get_parameter_source({"len": "length"}.get(one.name, one.name))
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"--{one.name} and --grid: give it in the grid file, as {key}")
