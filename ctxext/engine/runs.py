"""Attention as a list of runs: rows or sequences of which each slot is the next position.

A run is some consecutive queries of rows, and the slots of keys that they may see, both at
positions that are known. All rows of a batch are one run where they are alike, a padded row is one,
and each sequence of a packed row. Queries in no run are padding.

Queries are the last of the slots that are used: a static cache has slots behind them, that its
mask hides. A sliding cache drops its oldest slots: those that it holds are numbered from 0.

Dimensions: b batch, n queries, m slots.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ctxext.engine.positions import Positions
from ctxext.engine.slots import check_cached, check_steps, extent, pieces, real_queries
from ctxext.errors import UnsupportedModelError

FEW = 16  # fewer queries of padded rows are fastest as one product with all keys


@dataclass(frozen=True, eq=False)
class Run:
    """What attends at once.

    Attributes:
        rows, queries, keys: which they are, of b, n and m.
        at: the positions of the queries and keys.
        mask: [b or 1, 1, n or 1, m] of them, True where seen; None where causal order is all.
    """

    rows: slice
    queries: slice
    keys: slice
    at: Positions
    mask: Tensor | None = None

    def cut(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The run's own queries, keys and values."""
        b, _, n, _ = query.shape
        if (self.rows, self.queries) != (slice(0, b), slice(0, n)):
            query = query[self.rows, :, self.queries]
        if (self.rows, self.keys) != (slice(0, b), slice(0, key.shape[2])):
            key, value = (x[self.rows, :, self.keys] for x in (key, value))
        return query, key, value


def find_runs(
    positions: Tensor,
    mask: Tensor | None,
    ends: Tensor | None,
    b: int,
    n: int,
    m: int,
    window: int | None,
    counts: bool,
) -> list[Run]:
    """The runs of b rows, each of n queries and m keys.

    Args:
        positions: true positions of the queries [·, b or 1, n or more], of which the last n are
            meant; of any number of axes.
        mask: [b or 1, 1, n or 1, m], True where seen; None where causal order is all there is.
        ends: where each sequence of one packed row begins and ends, from 0 to n; or None.
        window: how many tokens a query of the layer sees, itself included; None for no limit.
        counts: whether the method counts positions from each row's first token.

    Raises:
        UnsupportedModelError: positions are not those of the slots.
    """
    axes = positions[..., -n:].cpu()
    if mask is None and ends is None and bool((axes == torch.arange(m - n, m)).all()):
        return [_whole(b, n, m)]
    axes = axes.reshape(-1, *axes.shape[-2:]).long()
    if bool((axes != axes[0]).any()):
        raise UnsupportedModelError(
            "distance methods do not support positions whose axes differ, as those of an image"
        )
    used, first, real = m, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, n, dtype=torch.bool)
    if mask is not None:
        if mask.shape[-1] != m or mask.shape[1] > 1:
            shape = " × ".join(map(str, mask.shape[1:]))
            raise UnsupportedModelError(
                f"distance methods do not support a mask of {shape} for {n} queries and {m} keys: "
                "it must be one for all heads, and over all keys"
            )
        used, first, real = extent(mask, n)
        if used > m:
            raise UnsupportedModelError(
                "distance methods do not support a mask that lets tokens see what comes after them"
            )
        mask = mask[..., :used]
        if mask.shape[2] == 1 and bool(mask.all()):
            mask = None
    slots = torch.arange(used - n, used)
    begins = slots - axes[0]  # [b or 1, n]
    # no more than these are held by a sliding cache, which may have dropped others
    full = window is not None and used == window - 1 + n
    if used > n:
        check_cached(begins, first, real, used, window, full)
    fresh = _sequences(begins, mask, ends, slots)
    if not counts:
        check_steps(begins, real, mask, fresh)
    return _Finder(begins, mask, fresh, b, n, used, window, full, counts).runs(first, real)


def _whole(b: int, n: int, m: int, mask: Tensor | None = None, at: Positions | None = None) -> Run:
    return Run(slice(0, b), slice(0, n), slice(0, m), at or Positions.consecutive(n, m), mask)


def _sequences(begins: Tensor, mask: Tensor | None, ends: Tensor | None, slots: Tensor) -> Tensor:
    """Which queries begin a sequence that sees nothing before itself [b or 1, n].

    As cumulative lengths say; else, where no mask says what is seen, those at position 0.
    """
    if ends is not None:
        fresh = torch.zeros(1, len(slots), dtype=torch.bool)
        fresh[0, ends[1:-1].cpu().long()] = True
        return fresh
    return (begins == slots) & (mask is None)


class _Finder:
    """The rows of one forward, cut to runs."""

    def __init__(
        self,
        begins: Tensor,
        mask: Tensor | None,
        fresh: Tensor,
        b: int,
        n: int,
        m: int,
        window: int | None,
        full: bool,
        counts: bool,
    ) -> None:
        self.begins, self.mask, self.fresh = begins, mask, fresh
        self.b, self.n, self.m = b, n, m
        self.window, self.full, self.counts = window, full, counts

    def runs(self, first: Tensor, real: Tensor) -> list[Run]:
        """All runs.

        Args:
            first, real: as `extent` gives them.
        """
        at_once = self._at_once(first, real) if self.n < FEW else None
        if at_once is not None:
            return [at_once]
        alike = len(self.begins) == 1 and (self.mask is None or len(self.mask) == 1)
        found = [run for row in range(1 if alike else self.b) for run in self._row(row)]
        if not alike:
            return found
        return [replace(run, rows=slice(0, self.b)) for run in found]

    def _at_once(self, first: Tensor, real: Tensor) -> Run | None:
        """All rows as one run, each at its own positions; None where a row has several."""
        n, m = self.n, self.m
        rows = max(len(self.begins), len(real))
        begins, own = self.begins.expand(rows, n), real.expand(rows, n)
        start = own.byte().argmax(-1, keepdim=True)
        begin = begins.gather(1, start)
        if bool((own & (begins != begin)).any()) or bool(self.fresh[:, 1:].any()):
            return None
        if self.counts:
            self._check_counts(begin, first.expand(rows, -1), own)
        firsts = -begin[:, 0]
        if bool((firsts == firsts[0]).all()):
            firsts = firsts[:1]
        return _whole(self.b, n, m, self.mask, Positions.by_row(n, m, firsts))

    def _check_counts(self, begin: Tensor, first: Tensor, real: Tensor) -> None:
        """UnsupportedModelError where positions do not count from the first token that is seen.

        Args:
            begin: the slot that they count from [rows, 1].
            first: the first slot that each query sees [rows, n or 1].
        """
        slots = torch.arange(self.m - self.n, self.m)
        reach = slots < begin + (self.window or self.m + self.n)  # else a window has hidden it
        wrong = (first < begin) | ((begin >= 0) & (first > begin) & reach)
        if not self.full:
            wrong = wrong | (begin < 0)
        if bool((wrong & real).any()):
            raise _astray()

    def _row(self, row: int) -> list[Run]:
        """The runs of one row."""
        begin, fresh = (x[row if len(x) > 1 else 0] for x in (self.begins, self.fresh))
        if self.mask is None:
            mask, real = None, torch.ones(self.n, dtype=torch.bool)
        else:
            mask = self.mask[row if len(self.mask) > 1 else 0, 0].cpu()
            real = real_queries(mask, begin, self.m - self.n)
        return [self._run(row, *each, begin, mask, fresh) for each in pieces(begin, real, fresh)]

    def _run(
        self, row: int, start: int, stop: int, begins: Tensor, mask: Tensor | None, fresh: Tensor
    ) -> Run:
        """One run; its mask [n or 1, m] is cut to it, and left out where causal order is all."""
        past, begin = self.m - self.n, int(begins[start])
        end = past + stop
        if mask is None:
            own, first = None, past + start if bool(fresh[start]) else 0
        else:
            own = mask[start:stop] if len(mask) > 1 else mask
            first = int(own.any(0).byte().argmax())
        if self.counts:
            self._check_begin(begin, start, stop, first, mask)
            first = max(0, begin)
        elif own is not None and bool(fresh[start]):
            first = past + start
        if own is not None:
            own = own[:, first:end]
            n, m = own.shape
            hides = ~own if n == 1 else ~own & torch.ones(n, m, dtype=torch.bool).tril(m - n)
            own = own[None, None] if bool(hides.any()) else None
        at = Positions.consecutive(stop - start, end - first, first - begin)
        rows = slice(row, row + 1)
        return Run(rows, slice(start, stop), slice(first, end), at, own)

    def _check_begin(
        self, begin: int, start: int, stop: int, first: int, mask: Tensor | None
    ) -> None:
        """UnsupportedModelError where a run's positions do not count from the first it sees."""
        if begin < 0:
            if not self.full:
                raise _astray()
            return
        past = self.m - self.n
        if mask is None:
            if first != begin:
                raise _astray()
            return
        if first < begin:
            raise _astray()
        if len(mask) == 1:
            late = not bool(mask[0, begin])
        else:
            if self.window is not None:  # it hides the beginning from later ones
                stop = min(stop, begin + self.window - past)
            seen = mask[start:stop]
            late = bool((seen.diagonal(past + start) & ~seen[:, begin]).any())
        if late:
            raise _astray()


def _astray() -> UnsupportedModelError:
    return UnsupportedModelError(
        "this distance method counts positions from a row's first token: give position_ids that "
        "do, or none"
    )


def attend_runs(
    attend: Callable[[Run, Tensor, Tensor, Tensor], Tensor],
    runs: list[Run],
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> Tensor:
    """What `attend(run, query, key, value)` gives of all runs: [b, h, n, ·], 0 for padding."""
    b, h, n, _ = query.shape
    if len(runs) == 1 and (runs[0].rows, runs[0].queries) == (slice(0, b), slice(0, n)):
        return attend(runs[0], *runs[0].cut(query, key, value))
    groups, done = [], 0
    for rows, some in itertools.groupby(runs, key=lambda run: (run.rows.start, run.rows.stop)):
        groups += [value.new_zeros(rows[0] - done, h, n, value.shape[3])]
        outs, at = [], 0
        for run in some:
            gap = value.new_zeros(rows[1] - rows[0], h, run.queries.start - at, value.shape[3])
            outs += [gap, attend(run, *run.cut(query, key, value))]
            at = run.queries.stop
        outs += [value.new_zeros(rows[1] - rows[0], h, n - at, value.shape[3])]
        groups += [torch.cat(outs, 2)]
        done = rows[1]
    return torch.cat([*groups, value.new_zeros(b - done, h, n, value.shape[3])])
