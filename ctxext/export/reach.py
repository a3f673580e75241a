"""Up to how many tokens a spec keeps what a model sees within what its training had."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ctxext.methods import Spec
from ctxext.methods.base import Part

PIECE = 2**20  # queries that are looked at at a time


def reach(spec: Spec, trained: int, length: int) -> int:
    """The most tokens, up to L, in which no query sees a key at a position beyond k·T.

    k is what the frequency methods of the spec stretch by, together.

    Args:
        spec: resolved for T and L.
        trained, length: T and L in tokens.
    """
    k = math.prod(method.extension(trained) for method in spec.frequencies)
    farthest = k * trained * (1 + 1e-9)  # k is L/T by default, and rounded
    if spec.distance is None:
        return int(min(length, farthest))
    parts = spec.distance.parts()
    for start in range(0, length, PIECE):
        query = torch.arange(start, min(start + PIECE, length), dtype=torch.float64)
        beyond = torch.stack([_farthest(part, query) for part in parts]).amax(0) > farthest
        if beyond.any():
            return start + int(beyond.int().argmax())
    return length


def note(spec: Spec, trained: int, length: int) -> list[str]:
    """A line that says so where a spec does not reach L, else none."""
    reached = reach(spec, trained, length)
    if reached >= length:
        return []
    return [
        f"{spec} reaches {reached} tokens and not {length}: beyond them keys stand further off "
        f"than any did in training, which was at {trained}"
    ]


def _farthest(part: Part, query: Tensor) -> Tensor:
    """How far off queries [n] see the oldest and the newest key of a part, whichever is more."""
    chunk = query // part.unit
    low = torch.zeros_like(query)
    if part.stop is not None:
        low = ((chunk - part.stop + 1) * part.unit).clamp(min=0)
    high = torch.minimum(query, (chunk - part.start + 1) * part.unit - 1)
    if part.first is not None:
        high = high.clamp(max=part.first - 1)
    ends = torch.stack([part.query(query) - part.key(end) for end in (low, high)]).amax(0)
    ends = part.offset + ends / part.extension
    return ends.masked_fill(high < low, -math.inf)
