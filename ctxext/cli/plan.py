"""`ctxext plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ctxext.cli import console
from ctxext.cli.options import (
    TASK_NAMES,
    Device,
    Dtype,
    Json,
    Methods,
    Model,
    OwnScaling,
    Revision,
    TrainLen,
    Trust,
    count,
    listed,
    size,
    source_of,
    tokens,
)


def plan(
    context: typer.Context,
    length: Annotated[int, tokens("len", "The length to read, in tokens.")],
    model: Model = "tiny",
    gpu: Annotated[
        int | None,
        size("gpu", "Memory of a device that need not be here, such as 24GiB."),
    ] = None,
    dtype: Dtype = "auto",
    batch_size: Annotated[int, count("batch-size", "Sequences that are read at once.")] = 1,
    task: Annotated[
        list[str],
        listed("task", "What is to be measured; default: a prompt and an answer.",
            autocompletion=TASK_NAMES),
    ] = [],  # noqa: B006
    method: Methods = [],  # noqa: B006
    device: Device = "auto",
    out: Annotated[
        Path, typer.Option(help="Folder of records that tell of methods and of time.")
    ] = Path("results"),
    timed: Annotated[
        bool,
        typer.Option("--time/--no-time", help="Time a few layers here, where no record tells."),
    ] = True,
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:  # fmt: skip
    """What reading at a length takes, and by which method, from a model's config alone."""
    from ctxext.errors import UsageError
    from ctxext.notation import is_length
    from ctxext.request import lists
    from ctxext.system.names import printable

    if not is_length(length):
        raise UsageError(f"bad value {length} for --len: give at least 2 tokens")
    if gpu is not None and device != "auto":
        raise UsageError(f"--gpu is of a device that need not be here: leave out --device {device}")
    source = source_of(context)
    specs = lists.parse_methods(method)[1:] if method else ()
    tasks = lists.parse_tasks(task)
    from ctxext.advise.plan import PlanRequest, make, tables

    console.quieten()
    console.announce([model])
    request = PlanRequest(source, length, gpu, batch_size, specs, tasks, out, timed)
    found = make(request, lambda line: typer.echo(printable(line), err=True))
    if as_json:
        typer.echo(json.dumps(tables.to_record(found), ensure_ascii=False, allow_nan=False))
        return
    screen = console.screen(120)
    for line in tables.head(found):
        typer.echo(printable(line))
    if (memory := tables.memory_table(found)) is not None:
        screen.print(memory, crop=False)
    for line in tables.below(found):
        typer.echo(printable(line))
    screen.print(tables.methods_table(found), crop=False)
    for line in tables.next_lines(found):
        typer.echo(printable(line))
