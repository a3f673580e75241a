"""Rows of tokens as methods count them that go by more than distance: from each row's first token.

A run is some consecutive queries of a row whose positions count from one slot, its beginning: a
row of a batch, padded or not, is one run, a packed row has one for each of its sequences. Within a
run, slots counted from its beginning are true positions.

Dimensions: b batch, n queries, the last of m slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctxext.errors import UnsupportedModelError


class Run(NamedTuple):
    """Queries start … stop−1 of a row, which see no slot before `begin`.

    Attributes:
        mask: [1, 1, stop − start, m' ] over slots from `begin` to the last query's, where more
            than causal order hides keys.
    """

    row: int
    start: int
    stop: int
    begin: int
    mask: Tensor | None


def find_runs(positions: Tensor, mask: Tensor | None, b: int, n: int, m: int) -> list[Run] | None:
    """The runs of every row; None where each row is one that begins at slot 0, unmasked.

    Queries in no run are padding.

    Args:
        positions: true positions of the queries [b or 1, n or more], of which the last n are meant.
        mask: [b or 1, 1, n or 1, m], True where seen.

    Raises:
        UnsupportedModelError: positions do not count from the first token that a query may see.
    """
    if positions.shape[1] < n:
        raise UnsupportedModelError(
            "this distance method does not know the positions of a layer that runs again after "
            "another forward: run it before, or without gradient checkpointing"
        )
    slots = torch.arange(m - n, m)
    begins = slots - positions[:, -n:].cpu().long()  # [b or 1, n]
    if mask is None:
        if begins.any():
            raise _astray()
        return None
    runs, rows = [], mask[:, 0].cpu()
    for row in range(b):
        begin = begins[row if len(begins) > 1 else 0]
        own = rows[row if len(rows) > 1 else 0]
        for start, stop in _pieces(begin, _real(own, begin, m - n)):
            runs.append(_run(row, start, stop, int(begin[start]), own, m - n))
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


def _pieces(begin: Tensor, real: Tensor) -> list[tuple[int, int]]:
    """Where the queries that are real have one beginning: start, stop each."""
    key = torch.where(real, begin, torch.iinfo(torch.long).min)
    edges = [0, *((key.diff() != 0).nonzero().flatten() + 1).tolist(), len(key)]
    return [(a, z) for a, z in itertools.pairwise(edges) if real[a]]


def _run(row: int, start: int, stop: int, begin: int, mask: Tensor, past: int) -> Run:
    """One run; its mask [n or 1, m] is cut to it, and left out where causal order is all."""
    own = mask[start:stop] if len(mask) > 1 else mask
    if begin < 0 or bool(own[:, :begin].any()):
        raise _astray()
    own = own[:, begin : past + stop]
    n, m = own.shape
    hides = ~own if n == 1 else ~own & torch.ones(n, m, dtype=torch.bool).tril(m - n)
    if not hides.any():
        return Run(row, start, stop, begin, None)
    return Run(row, start, stop, begin, own.expand(1, 1, stop - start, -1))


def attend_runs(
    attend: Callable[..., Tensor],
    runs: list[Run] | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """What `attend(query, key, value, mask)` gives of each run, and 0 for padding: [b, h, n, ·]."""
    if runs is None:
        return attend(query, key, value)
    (b, h, n, _), m = query.shape, key.shape[2]
    rows = [query.new_zeros(h, n, value.shape[3], dtype=value.dtype) for _ in range(b)]
    pieces: list[list[Tensor]] = [[] for _ in range(b)]
    done = [0] * b
    for row, start, stop, begin, mask in runs:
        seen = slice(begin, m - n + stop)
        one = slice(row, row + 1)
        k, v = key[one, :, seen], value[one, :, seen]
        here = None if mask is None else mask.to(k.device)
        out = attend(query[one, :, start:stop], k, v, mask=here)
        pieces[row] += [rows[row][:, done[row] : start], out[0]]
        done[row] = stop
    for row in range(b):
        pieces[row].append(rows[row][:, done[row] :])
    return torch.stack([torch.cat(some, 1) for some in pieces])
