"""`ctxext explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ctxext.cli import console
from ctxext.cli.options import (
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
    source_of,
)


def explain(
    context: typer.Context,
    length: Annotated[str, typer.Option("--len", help="The length to explain, in tokens.")],
    model: Model = "tiny",
    method: Methods = [],  # noqa: B006
    entropy: Annotated[
        bool,
        typer.Option(
            "--entropy/--no-entropy", help="Run the model on text; without, its config will do."
        ),
    ] = True,
    data: Annotated[
        str, typer.Option(help="For entropy: stdlib, a .txt or .jsonl file, hf:….")
    ] = "stdlib",
    limit: Annotated[int, count("limit", "At most so many windows of the text.")] = 4,
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the tables and plots.")] = Path("results"),
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Show why a method works: angles that training never saw, distances, entropy of attention."""
    from ctxext.request import lists
    from ctxext.request.options import check_data

    methods, (tokens, *more) = lists.parse_methods(method), lists.parse_lengths([length])
    if more:
        raise typer.BadParameter(f"{length!r}: one length at a time", param_hint="--len")
    source = source_of(context)
    text = check_data(data) if entropy else None
    from ctxext.advise import explain as study_of
    from ctxext.advise.progress import Progress

    console.quieten()
    console.announce([model])
    with Progress() as progress:
        request = study_of.ExplainRequest(source, methods, tokens, text, limit, out)
        study = study_of.explain(request, progress.monitor())
    if as_json:
        for record in study_of.records(study):
            typer.echo(json.dumps(record, ensure_ascii=False, allow_nan=False))
    else:
        console.print_sheets(study)
    for path in study_of.write_files(study):
        typer.echo(f"wrote {path}", err=True)
