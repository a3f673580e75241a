"""Rows of tokens as methods count them that go by more than distance: from each row's first token.

A run is some consecutive queries of a row whose positions count from one slot, its beginning: a
row of a batch, padded or not, is one run, a packed row has one for each of its sequences. Within a
run, slots counted from its beginning are true positions.

A sliding cache drops its oldest slots: those that it holds are numbered from 0, and the runs that
it has cut begin below.

Dimensions: b batch, n queries, the last of m slots.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ctxext.errors import UnsupportedModelError
from ctxext.patches.base import Part, as_held

if TYPE_CHECKING:
    from ctxext.patches.base import Map


class Run(NamedTuple):
    """Queries start … stop−1 of a row, which see no slot before `begin`.

    Attributes:
        mask: [1, 1, stop − start, m' ] over slots from `begin`, or the first that is held, to the
            last query's, where more than causal order hides keys.
    """

    row: int
    start: int
    stop: int
    begin: int
    mask: Tensor | None


def find_runs(
    begins: Tensor, mask: Tensor | None, b: int, m: int, window: int | None, full: bool
) -> list[Run] | None:
    """The runs of every row; None where each row is one that begins at slot 0, unmasked.

    Queries in no run are padding.

    Args:
        begins: slot − true position of each query [b or 1, n].
        mask: [b or 1, 1, n or 1, m], True where seen.
        window: how many tokens a query sees, itself included; None for no limit.
        full: whether a sliding cache may have dropped slots before these.

    Raises:
        UnsupportedModelError: positions do not count from the first token that a query may see.
    """
    if mask is None and not begins.any():
        return None
    runs, past = [], m - begins.shape[1]
    rows = torch.ones(1, 1, m, dtype=torch.bool) if mask is None else mask[:, 0].cpu()
    for row in range(b):
        begin = begins[row if len(begins) > 1 else 0]
        own = rows[row if len(rows) > 1 else 0]
        for start, stop in pieces(begin, _real(own, begin, past)):
            if begin[start] < 0 and not full:
                raise _astray()
            runs.append(_run(row, start, stop, int(begin[start]), own, past, window))
    return runs


def _astray() -> UnsupportedModelError:
    return UnsupportedModelError(
        "this distance method counts positions from a row's first token: give position_ids that "
        "do, or none"
    )


def _real(mask: Tensor, begin: Tensor, past: int) -> Tensor:
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


def pieces(begin: Tensor, real: Tensor) -> list[tuple[int, int]]:
    """Where the queries that are real have one beginning: start, stop each."""
    key = torch.where(real, begin, torch.iinfo(torch.long).min)
    edges = [0, *((key.diff() != 0).nonzero().flatten() + 1).tolist(), len(key)]
    return [(a, z) for a, z in itertools.pairwise(edges) if real[a]]


def _run(
    row: int, start: int, stop: int, begin: int, mask: Tensor, past: int, window: int | None
) -> Run:
    """One run; its mask [n or 1, m] is cut to it, and left out where causal order is all."""
    own = mask[start:stop] if len(mask) > 1 else mask
    first = max(0, begin)
    if bool(own[:, :first].any()):
        raise _astray()
    if begin >= 0 and _starts_late(mask, start, stop, begin, past, window):
        raise _astray()
    own = own[:, first : past + stop]
    n, m = own.shape
    hides = ~own if n == 1 else ~own & torch.ones(n, m, dtype=torch.bool).tril(m - n)
    if not hides.any():
        return Run(row, start, stop, begin, None)
    return Run(row, start, stop, begin, own.expand(1, 1, stop - start, -1))


def _starts_late(
    mask: Tensor, start: int, stop: int, begin: int, past: int, window: int | None
) -> bool:
    """Whether one of the queries start … stop−1 does not see `begin`, by a row's mask [n or 1, m].

    Not so where their window has hidden it, or they are padding.
    """
    if len(mask) < mask.shape[1] - past:
        return not bool(mask[0, begin])
    if window is not None:
        stop = min(stop, begin + window - past)
    seen = mask[start:stop]
    return bool((seen.diagonal(past + start) & ~seen[:, begin]).any())


def attend_runs(
    attend: Callable[..., Tensor],
    parts: tuple[Part, ...],
    runs: list[Run] | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """What `attend(query, key, value, parts, mask)` gives of each run: [b, h, n, ·], 0 for padding.

    Args:
        parts: for true positions.
    """
    if runs is None:
        return attend(query, key, value, parts=parts)
    (b, h, n, _), m = query.shape, key.shape[2]
    rows = [query.new_zeros(h, n, value.shape[3], dtype=value.dtype) for _ in range(b)]
    pieces: list[list[Tensor]] = [[] for _ in range(b)]
    done = [0] * b
    for row, start, stop, begin, mask in runs:
        seen = slice(max(0, begin), m - n + stop)
        one = slice(row, row + 1)
        k, v = key[one, :, seen], value[one, :, seen]
        here, own = None if mask is None else mask.to(k.device), parts
        if begin < 0:
            k, v, here, own = _after(-begin, k, v, here, parts)
        out = attend(query[one, :, start:stop], k, v, parts=own, mask=here)
        pieces[row] += [rows[row][:, done[row] : start], out[0]]
        done[row] = stop
    for row in range(b):
        pieces[row].append(rows[row][:, done[row] :])
    return torch.stack([torch.cat(some, 1) for some in pieces])


def _after(
    gone: int, key: Tensor, value: Tensor, mask: Tensor | None, parts: tuple[Part, ...]
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Part, ...]]:
    """Keys, values, mask and parts of a run whose first `gone` tokens are no longer held.

    Positions are counted from the first key. Chunks must begin at multiples of their unit, so that
    hidden keys fill up the first.
    """
    fill = gone % math.lcm(*(part.unit for part in parts))
    if fill:
        if mask is None:
            mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=key.device)
        key, value = (pad(x, (0, 0, fill, 0)) for x in (key, value))
        mask = pad(mask, (fill, 0))
    return key, value, mask, tuple(_moved(part, gone - fill) for part in parts)


def _moved(part: Part, by: int) -> Part:
    """The part for positions that are less than true ones by so many tokens."""

    def moved(own: Map) -> Map:
        return lambda position: own(position + by)

    return replace(
        part,
        query=moved(part.query),
        key=part.key if part.key is as_held else moved(part.key),
        first=None if part.first is None else max(0, part.first - by),
    )
