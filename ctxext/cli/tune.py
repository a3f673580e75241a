"""`ctxext tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ctxext.cli import console
from ctxext.cli.options import (
    METHOD_NAMES,
    TASK_NAMES,
    Attn,
    Batch,
    Device,
    DeviceMap,
    Dtype,
    Json,
    LoadIn,
    Model,
    OwnScaling,
    Revision,
    Tokens,
    TrainLen,
    Trust,
    count,
    listed,
    source_of,
)


def tune(
    context: typer.Context,
    length: Annotated[str, typer.Option("--len", help="The length to stretch to, in tokens.")],
    model: Model = "tiny",
    method: Annotated[
        list[str],
        listed(
            "method",
            "Search these alone: a name, or a spec whose given parameters stay; repeatable. "
            "Default: every method by itself.",
            autocompletion=METHOD_NAMES,
        ),
    ] = [],  # noqa: B006
    trials: Annotated[
        int, count("trials", "Specs that are proposed, beside every default; 0 for none.", least=0)
    ] = 40,
    objective: Annotated[
        str,
        typer.Option(
            help="ppl-tail, longppl, or a task whose samples are answered: passkey, ruler:vt, ….",
            autocompletion=TASK_NAMES,
        ),
    ] = "ppl-tail",
    tax: Annotated[
        float,
        typer.Option(
            help="The most that a winner may lose at the trained length, in nats/token; judged by "
            "the finals where they are held."
        ),
    ] = 0.02,
    data: Annotated[
        str | None,
        typer.Option(help="As for ctxext eval. The tax is on it too, for perplexity; else stdlib."),
    ] = None,
    limit: Annotated[
        int | None,
        count(
            "limit",
            "Windows or samples that each trial reads; the finals read six times as many, "
            "the comparison in the end six times as many more; default 6 or 22.",
        ),
    ] = None,
    tokens: Tokens = None,
    seed: Annotated[int, count("seed", "Of the proposals, and of drawn samples.", least=0)] = 0,
    attn: Attn = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_size: Batch = None,
    out: Annotated[Path, typer.Option(help="Folder of the trials' record files.")] = Path(
        "results/tune"
    ),
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    load_in: LoadIn = None,
    device_map: DeviceMap = None,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Search for the method and the parameters that suit a model at a length best."""
    from ctxext.advise import tune as search
    from ctxext.errors import UsageError
    from ctxext.request import lists
    from ctxext.request.options import check_data

    lengths, objectives = lists.parse_lengths([length]), lists.parse_tasks([objective])
    for name, text, found in (("len", length, lengths), ("objective", objective, objectives)):
        if len(found) > 1:
            raise UsageError(f"--{name} {text} are {len(found)}: give one")
    request = search.TuneRequest(
        source=source_of(context),
        length=lengths[0],
        methods=tuple(method),
        objective=objectives[0],
        data=check_data(data),
        trials=trials,
        tax=tax,
        limit=limit,
        tokens=tokens,
        seed=seed,
        batch_size=batch_size,
        out=out,
    )
    console.announce([model])
    raise typer.Exit(console.tune(request, as_json))
