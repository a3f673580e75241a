"""Tasks that hide something at several depths of a prompt, from 0 (the beginning) to 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctxext.errors import UsageError
from ctxext.synthetic.fit import Maker, TooShort, fill, least_tokens
from ctxext.tasks.base import Sample, SampleTask


def spread(
    task: SampleTask, maker: Maker, tokenizer: Any, length: int, count: int, depths: int
) -> list[Sample]:
    """So many prompts that fill the length less the answer, in tokens: one for each depth, then
    another for each, and so on.

    Raises:
        UsageError: not even the smallest prompt fits.
    """
    try:
        fitted = fill(maker, tokenizer, count, length - task.generates)
    except TooShort:
        least = least_tokens(maker, tokenizer, count) + task.generates
        raise UsageError(
            f"{task} does not fit into length {length}: give --len {least} or more"
        ) from None
    samples = []
    for index, (prompt, ids) in enumerate(fitted):
        name = f"{index // depths}-{prompt.depth:.6g}"
        facts = {"depth": prompt.depth, "length": len(ids)}
        samples.append(Sample(name, ids, prompt.answers, facts))
    return samples


def by_depth(hits: Sequence[tuple[float, bool]]) -> list[dict[str, Any]]:
    """The share of hits at each depth, as the parts of a score."""
    depths: dict[float, list[bool]] = {}
    for depth, hit in hits:
        depths.setdefault(depth, []).append(hit)
    return [
        {"name": f"depth {at:.3g}", "depth": at, "value": sum(some) / len(some), "n": len(some)}
        for at, some in sorted(depths.items())
    ]
