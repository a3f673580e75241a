"""`ctxext tasks`."""

from __future__ import annotations

from ctxext.cli import console
from ctxext.cli.options import Json


def tasks(as_json: Json = False) -> None:
    """The tasks, with the metric of each."""
    from ctxext import tasks as registry

    console.print_registry(registry.REGISTRY, as_json)
