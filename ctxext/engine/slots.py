"""Which slots of keys a layer's queries may see by its mask, and whether positions agree.

Dimensions: b batch, n queries, m slots.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ctxext.errors import UnsupportedModelError


def real_queries(mask: Tensor, begin: Tensor, past: int) -> Tensor:
    """Which queries of a row are no padding [n]: they see themselves, or see what they may.

    Args:
        mask: [n or 1, m].
        begin: the slots from which on they may see [n].
        past: the slot of the first.
    """
    n, m = len(begin), mask.shape[1]
    if len(mask) < n:
        return mask[0, past:]
    astray = mask & (torch.arange(m) < begin[:, None])
    return mask.diagonal(past) | (mask.any(-1) & ~astray.any(-1))


def pieces(begin: Tensor, real: Tensor, fresh: Tensor | None = None) -> list[tuple[int, int]]:
    """Where the queries that are real have one beginning: start, stop each.

    Args:
        fresh: which of them begin a sequence of their own, whatever they count from.
    """
    key = torch.where(real, begin, torch.iinfo(torch.long).min)
    new = key.diff() != 0
    if fresh is not None:
        new = new | fresh[1:]
    edges = [0, *(new.nonzero().flatten() + 1).tolist(), len(key)]
    return [(a, z) for a, z in itertools.pairwise(edges) if real[a]]


def counts_padding(positions: Tensor, mask: Tensor, n: int, window: int | None) -> bool:
    """Whether positions count slots before the first that a token sees, by its mask.

    Args:
        positions, mask, window: as for `find_runs`.
    """
    used, first, real = extent(mask, n)
    slots = torch.arange(used - n, used)
    begins = slots - positions[:, -n:].cpu().long()
    edge = first == slots - (window or used + 1) + 1  # a window may have hidden what comes before
    return bool(((begins >= 0) & (begins < first) & ~edge & real).any())


def extent(mask: Tensor, n: int) -> tuple[int, Tensor, Tensor]:
    """Of a mask [b or 1, 1, n or 1, m]: how many slots are used, the first that each query sees
    [·, n or 1], and which queries see themselves [·, n], as padding does not.

    More than m are used where queries see what comes after them.
    """
    rows, m = mask[:, 0].view(torch.uint8), mask.shape[-1]
    if rows.shape[1] < n:
        rows = rows[:, 0]
        return m, rows.argmax(-1, keepdim=True).cpu(), rows[:, m - n :].bool().cpu()
    ends = torch.stack((rows.argmax(-1), m - 1 - rows.flip(-1).argmax(-1), rows.amax(-1).long()))
    first, last, some = ends.cpu()
    # a query that sees itself tells where it is; one that does not sees less
    found = torch.where(some.bool(), last + n - torch.arange(n), 0).max()
    used = int(found) or m
    return used, first, some.bool() & (last == torch.arange(used - n, used))


def _at_first(
    begins: Tensor, first: Tensor, real: Tensor, used: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row's first query that is no padding: slot − position, what it sees, its slot."""
    rows, n = max(len(begins), len(real)), real.shape[1]
    index = real.byte().argmax(-1, keepdim=True).expand(rows, 1)
    of = (x.expand(rows, n).gather(1, index)[:, 0] for x in (begins, first))
    begin, seen = of
    return begin, seen, index[:, 0] + used - n


def check_cached(
    begins: Tensor, first: Tensor, real: Tensor, used: int, window: int | None, full: bool
) -> None:
    """UnsupportedModelError where tokens of the cache do not stand where their slots say."""
    begin, seen, slot = _at_first(begins, first, real, used)
    held = (begin == 0) | (begin == seen)
    if window is not None:
        edge = seen == (slot - window + 1).clamp(min=0)
        held |= edge & (begin <= seen) & ((begin >= 0) | full)
        if full:  # positions that count padding too, and what was dropped
            held |= begin < 0
    wrong = ~held & real.any(-1) & (seen < used - begins.shape[1])
    if bool(wrong.any()):
        row = int(wrong.byte().argmax())
        raise UnsupportedModelError(
            f"a row's cache holds {int(slot[row] - seen[row])} keys before the token at position "
            f"{int(slot[row] - begin[row])}: distance methods do not support padding between the "
            "tokens of a row, positions that leave out or repeat some, or images"
        )


def check_steps(begins: Tensor, real: Tensor, mask: Tensor | None, fresh: Tensor) -> None:
    """UnsupportedModelError where tokens that see each other do not stand where slots say."""
    past = 0 if mask is None else mask.shape[-1] - begins.shape[1]
    for row in range(max(len(begins), len(real))):
        begin, own = (x[row if len(x) > 1 else 0] for x in (begins, real))
        some = begin[own]
        if bool((some == some[:1]).all()):
            continue
        new = fresh[row if len(fresh) > 1 else 0]
        seen = None if mask is None or mask.shape[2] == 1 else mask[row if len(mask) > 1 else 0, 0]
        for start, stop in pieces(begin, own):
            if not start or bool(new[start]):
                continue
            if seen is None or bool(seen[start:stop, : past + start].any()):
                raise UnsupportedModelError(
                    "distance methods do not support padding between the tokens of a row, or "
                    "position_ids that leave out or repeat positions: pad on one side, and give "
                    "position_ids that count every token, or none"
                )
