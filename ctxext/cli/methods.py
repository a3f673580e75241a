"""`ctxext methods`."""

from __future__ import annotations

import typer

from ctxext.cli import console
from ctxext.cli.options import Json


def methods(as_json: Json = False) -> None:
    """The methods: formula, parameters, source, what each does inside the trained length."""
    from ctxext import methods as registry

    console.print_registry(registry.REGISTRY, as_json)
    if not as_json:
        typer.echo(f"  {registry.NOTATION}")
