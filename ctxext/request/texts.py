"""A request from texts, as a command or a call has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ctxext.models.loading import Source
from ctxext.request import lists
from ctxext.request.evaluation import EvaluationRequest
from ctxext.request.options import check_data


def request_of(
    source: Source,
    methods: Sequence[str],
    lengths: Sequence[str],
    tasks: Sequence[str],
    data: str | None = None,
    seeds: Sequence[str] = ("0",),
    *,
    limit: int | None = None,
    tokens: int | None = None,
    batch_size: int | None = None,
    out: Path = Path("results"),
    force: bool = False,
) -> EvaluationRequest:
    """An evaluation of a model, its lists parsed.

    Raises:
        UsageError: a method, length, task, seed or name of data that is none; the message has the
            valid ones.
    """
    return EvaluationRequest(
        source=source,
        methods=lists.parse_methods(list(methods)),
        lengths=lists.parse_lengths(list(lengths)),
        tasks=lists.parse_tasks(list(tasks)),
        data=check_data(data),
        limit=limit,
        tokens=tokens,
        seeds=lists.parse_seeds(list(seeds)),
        batch_size=batch_size,
        out=out,
        force=force,
    )
