"""`ctxext patch`, which is `ctxext export` too."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from ctxext import choices
from ctxext.cli import console
from ctxext.cli.options import (
    METHOD_NAMES,
    Json,
    Model,
    OwnScaling,
    Revision,
    TrainLen,
    Trust,
    tokens,
    word,
)


def patch(
    method: Annotated[
        str,
        typer.Option(
            help="name:key=value,…, several joined by + (see ctxext methods).",
            autocompletion=METHOD_NAMES,
        ),
    ],
    length: Annotated[int, tokens("len", "The length to stretch to, in tokens.")],
    out: Annotated[Path, typer.Option(help="The new folder to write.")],
    model: Model = "tiny",
    style: Annotated[
        choices.ExportFormat,
        word(
            "format", "hf, a folder for transformers, or gguf, for llama.cpp.", choices.ExportFormat
        ),
    ] = "hf",
    native_only: Annotated[
        bool, typer.Option("--native-only", help="Refuse a folder that needs code of its own.")
    ] = False,
    link: Annotated[
        bool, typer.Option("--link", help="Hard-link the weight files instead of copying them.")
    ] = False,
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Leave the weights where they are.")
    ] = False,
    verify: Annotated[
        choices.Verification,
        word(
            "verify",
            "quick: with small random weights; full: with the model's own.",
            choices.Verification,
        ),
    ] = "quick",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload the folder as this repository.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make the new repository private.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Take .bin weights, which may hold code.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder.")] = False,
    as_json: Json = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    train_len: TrainLen = None,
    own_scaling: OwnScaling = "keep",
) -> None:
    """Export the patched model: a folder, or a GGUF file, that other tools load (also: export)."""
    from dataclasses import replace

    from ctxext import methods
    from ctxext.errors import UsageError
    from ctxext.models.loading import Source
    from ctxext.system.names import printable

    spec = methods.parse(method)
    if private and push_to_hub is None:
        raise UsageError("--private is for --push-to-hub: give that too, or leave it out")
    from ctxext.export import hub
    from ctxext.export.unpacked import unpacked
    from ctxext.export.write import Order, check, export, public_name
    from ctxext.models.aliases import locate
    from ctxext.models.folder import local_folder
    from ctxext.models.identity import told

    console.quieten()
    repository = None if push_to_hub is None else hub.check_repository(push_to_hub)
    order = Order(
        Path(),
        spec,
        length,
        out,
        name=model,
        train_len=train_len,
        own_scaling=own_scaling,
        trust_remote_code=trust_remote_code,
        native_only=native_only,
        link=link,
        config_only=config_only,
        allow_pickle=allow_pickle,
        force=force,
        full=verify == "full",
        gguf=style == "gguf",
    )
    check(order)
    console.announce([model])
    source = Source(model, revision, trust_remote_code)
    with console.terminable(), contextlib.ExitStack() as stack:
        if source.file is not None:
            if config_only:
                raise UsageError("--config-only has no folder of weights to go with a GGUF file")
            folder, note = stack.enter_context(unpacked(source, out))
            order = replace(order, name=source.file.stem, link=style == "hf", notes=(note,))
        else:
            folder = local_folder(source, weights=not config_only, allow_pickle=allow_pickle)
            where = locate(model)
            order = replace(order, hub_id=None if Path(where).is_dir() else where)
        done = export(replace(order, source=folder))
    typer.echo(printable(told(model, done.trained, done.own_scaling)), err=True)
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(done.to_record(out), ensure_ascii=False))
    else:
        typer.echo(printable(f"{out}: {model} with {done.spec}, {done.line()}"))
    if repository is not None:
        message = f"{public_name(model, folder)} with {done.spec}"
        url = hub.push(out, repository, private=private, message=message)
        typer.echo(f"pushed to {url}", err=True)
