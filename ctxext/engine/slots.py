"""Which slots of keys a layer's queries may see, by a forward's positions and mask.

Queries are the last of the slots that are used: a static cache has slots behind them, that its
mask hides. Distance methods take slots for positions, so that a slot and the position of its token
must differ by the padding before it, or by what a sliding cache has dropped.

Dimensions: b batch, n queries, m slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctxext.engine.runs import Run, find_runs, pieces
from ctxext.errors import UnsupportedModelError


class Slots(NamedTuple):
    """What a layer may see, of the first `used` of its slots.

    Attributes:
        mask: [b or 1, 1, n or 1, used], True where seen; None where causal order is all there is.
        first: each row's first slot that holds a token, where the mask says no more.
        runs: of a method that counts from each row's first token.
    """

    used: int
    mask: Tensor | None
    first: list[int] | None
    runs: list[Run] | None


def find_slots(
    positions: Tensor, mask: Tensor | None, b: int, n: int, m: int, window: int | None, counts: bool
) -> Slots:
    """The slots of b rows, each for n queries and m keys.

    Args:
        positions: true positions of the queries [·, b or 1, n or more], of which the last n are
            meant; of any number of axes.
        mask: [b or 1, 1, n or 1, m], True where seen; None where causal order is all there is.
        window: how many tokens a query of the layer sees, itself included; None for no limit.
        counts: whether the method counts from each row's first token.

    Raises:
        UnsupportedModelError: positions are not those of the slots.
    """
    axes = positions[..., -n:].cpu()
    if mask is None and bool((axes == torch.arange(m - n, m)).all()):
        return Slots(m, None, None, None)
    axes = axes.reshape(-1, *axes.shape[-2:]).long()
    if bool((axes != axes[0]).any()):
        raise UnsupportedModelError(
            "distance methods do not support positions whose axes differ, as those of an image"
        )
    used, first, real, rows = m, torch.zeros(1, 1, dtype=torch.long), None, None
    if mask is not None:
        if mask.shape[-1] != m or mask.shape[1] > 1:
            shape = " × ".join(map(str, mask.shape[1:]))
            raise UnsupportedModelError(
                f"distance methods do not support a mask of {shape} for {n} queries and {m} keys: "
                "it must be one for all heads, and over all keys"
            )
        used, first, real = _extent(mask, n)
        if used > m:
            raise UnsupportedModelError(
                "distance methods do not support a mask that lets tokens see what comes after them"
            )
        mask = mask[..., :used]
        if mask.shape[2] == 1:
            rows = mask[:, 0, 0].cpu()
            mask = None if bool(rows.all()) else mask
    begins = torch.arange(used - n, used) - axes[0]  # [b or 1, n]
    real = torch.ones_like(begins, dtype=torch.bool) if real is None else real
    # no more than these are held by a sliding cache, which may have dropped others
    full = window is not None and used == window - 1 + n
    if used > n:
        _check_cached(begins, first, real, used, window, full)
    if not counts:
        _check_steps(begins, real, mask)
    runs = find_runs(begins, mask, b, used, window, full) if counts else None
    return Slots(used, mask, _starts(rows, n) if mask is not None else None, runs)


def counts_padding(positions: Tensor, mask: Tensor, n: int, window: int | None) -> bool:
    """Whether positions count slots before the first that a token sees, by its mask.

    Args:
        positions, mask, window: as for `find_slots`.
    """
    used, first, real = _extent(mask, n)
    slots = torch.arange(used - n, used)
    begins = slots - positions[:, -n:].cpu().long()
    edge = first == slots - (window or used + 1) + 1  # a window may have hidden what comes before
    return bool(((begins >= 0) & (begins < first) & ~edge & real).any())


def _extent(mask: Tensor, n: int) -> tuple[int, Tensor, Tensor]:
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


def _check_cached(
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


def _check_steps(begins: Tensor, real: Tensor, mask: Tensor | None) -> None:
    """UnsupportedModelError where tokens that see each other do not stand where slots say."""
    past = 0 if mask is None else mask.shape[-1] - begins.shape[1]
    for row in range(max(len(begins), len(real))):
        begin, own = (x[row if len(x) > 1 else 0] for x in (begins, real))
        some = begin[own]
        if bool((some == some[:1]).all()):
            continue
        seen = None if mask is None or mask.shape[2] == 1 else mask[row if len(mask) > 1 else 0, 0]
        for start, stop in pieces(begin, own):
            if start and (seen is None or bool(seen[start:stop, : past + start].any())):
                raise UnsupportedModelError(
                    "distance methods do not support padding between the tokens of a row, or "
                    "position_ids that leave out or repeat positions: pad on one side, and give "
                    "position_ids that count every token, or none"
                )


def _starts(rows: Tensor | None, n: int) -> list[int] | None:
    """Each row's first slot that holds a token, where a mask over keys [b or 1, m] says no more.

    A mask over the keys of n = 1 query may also hide the newest ones, unlike padding.
    """
    if rows is None or (n == 1 and not rows[:, -1].all()):
        return None
    begins = torch.diff(rows.int(), prepend=torch.zeros_like(rows[:, :1]).int()) == 1
    return None if bool((begins.sum(-1) > 1).any()) else rows.int().argmax(-1).tolist()
