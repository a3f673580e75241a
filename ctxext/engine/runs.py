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
        used, first, real = _extent(mask, n)
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
        _check_cached(begins, first, real, used, window, full)
    fresh = _sequences(begins, mask, ends, slots)
    if not counts:
        _check_steps(begins, real, mask, fresh)
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
            first, real: as `_extent` gives them.
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
            real = _real(mask, begin, self.m - self.n)
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


def _check_steps(begins: Tensor, real: Tensor, mask: Tensor | None, fresh: Tensor) -> None:
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
