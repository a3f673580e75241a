"""How token tasks cut a text's tokens into windows."""

from __future__ import annotations

import torch
from torch import Tensor

from ctxext.errors import UsageError
from ctxext.registry import counted
from ctxext.tasks.base import Windows


def cut(
    ids: Tensor, length: int, start: int | None, limit: int | None, passage: int | None = None
) -> Windows:
    """Consecutive windows that do not overlap, every token but the first scored.

    Args:
        passage: the tokens after which each says its own beginning again.
    """
    payload = length - (start is not None)
    count = _count(ids, payload, limit, length)
    begins = torch.arange(count) * payload
    passage = None if passage is None or passage >= payload else passage
    return Windows(ids, begins, torch.ones_like(begins), length, start, passage)


def tails(
    ids: Tensor, length: int, start: int | None, limit: int | None, span: int, tail: int
) -> Windows:
    """The last `length` tokens of each consecutive span, the last `tail` − 1 of them scored.

    The ends, and so the scored tokens, are the same for every length up to `span`; all in tokens.
    """
    step = span - (start is not None)
    begins = torch.arange(_count(ids, step, limit, span)) * step + span - length
    return Windows(ids, begins, torch.full_like(begins, length - tail + 1), length, start)


def slide(ids: Tensor, length: int, start: int | None, limit: int | None, stride: int) -> Windows:
    """Windows `stride` tokens apart: each token is scored once, by the first that it is in.

    The first window scores all but its first token, each other one the tokens that no window
    before it held. The last one ends with the text.
    """
    opening = int(start is not None)
    payload = length - opening
    _count(ids, payload, None, length)
    last = len(ids) - payload
    begins = torch.arange(0, last + stride, stride).clamp(max=last)[:limit]
    ends = torch.cat((torch.tensor([1 - opening]), begins[:-1] + payload))
    return Windows(ids, begins, ends - begins + opening, length, start)


def _count(ids: Tensor, payload: int, limit: int | None, length: int) -> int:
    """How many windows there are; UsageError for none."""
    count = min(len(ids) // payload, limit or len(ids)) if payload else 0
    if count == 0:
        raise UsageError(
            f"the data has {counted(len(ids), 'token')}, fewer than one window of {length}: "
            "give longer data or a smaller --len"
        )
    return count
