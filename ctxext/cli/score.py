"""`ctxext score`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ctxext.cli import console
from ctxext.cli.options import Json


def score(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of TASK.jsonl files.")],
    extended: Annotated[
        bool, typer.Option("--e", help="LongBench-E: also by length, 0-4k, 4-8k and 8k+.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Score LongBench predictions by the authors' rules: {"pred", "answers", …} on each line."""
    from ctxext.tasks.scoring import predictions

    results = predictions.score_folder(folder, extended)
    if as_json:
        for result in results:
            typer.echo(json.dumps(result, allow_nan=False))
        return
    console.screen(160).print(predictions.to_table(results), crop=False)
