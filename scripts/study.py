"""What the studies of the tiny models have in common: measuring, told on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from ctxext.advise.progress import Progress
from ctxext.cli import console
from ctxext.measure.run import Evaluation
from ctxext.request.evaluation import EvaluationRequest


def measure(requests: Iterable[EvaluationRequest], then: Callable[[], None] | None = None) -> None:
    """Every cell that has no record yet; SystemExit, after `then`, where some of them failed."""
    console.quieten()
    with Progress() as progress:
        work = Evaluation(list(requests), progress.monitor())
        try:
            work.run()
        except KeyboardInterrupt:
            raise typer.Exit(console.INTERRUPTED) from None
    if then is not None:
        then()
    if failed := [r for r in work.records if r["status"] != "ok"]:
        raise SystemExit(f"{len(failed)} cells failed, the first: {failed[0]['reason']}")
