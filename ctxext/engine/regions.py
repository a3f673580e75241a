"""Where the parts of a distance method lie, as regions of consecutive queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ctxext.engine.positions import Band
from ctxext.methods.base import Part


class Region(NamedTuple):
    """Queries low … high−1 and keys left … right−1, by position, within one part.

    Without a `lag` every query sees every key. With one, a query at p sees keys up to p − lag, of
    them the last `window`; right is then high − lag.
    """

    part: int
    low: int
    high: int
    left: int
    right: int
    lag: int | None = None
    window: int | None = None


def all_regions(bands: tuple[Band, ...], begin: int, end: int, n: int) -> Iterator[Region]:
    """The regions of every part for the last n of positions begin … end−1, the first part's first.

    No key before `begin` is held.
    """
    for index, (part, *_) in enumerate(bands):
        divide = _chunks if part.unit > 1 else _range
        yield from divide(part, index, begin, end, n)


def _range(part: Part, index: int, begin: int, m: int, n: int) -> Iterator[Region]:
    """The regions of a part that is a range of distances."""
    low = max(m - n, begin + part.start)  # the first position whose query sees a key of this part
    last = m if part.first is None else part.start + part.first  # from which on it sees all `first`
    if part.stop is not None:
        window, left = part.stop - part.start, max(begin, low - part.stop + 1)
        if low < m:
            yield Region(index, low, m, left, m - part.start, part.start, window)
        return
    high = min(m, last)
    if low < high:
        yield Region(index, low, high, begin, high - part.start, part.start)
    if part.first and max(low, high) < m and begin < part.first:
        yield Region(index, max(low, high), m, begin, part.first)


def _chunks(part: Part, index: int, begin: int, m: int, n: int) -> Iterator[Region]:
    """The regions of a part that goes by chunks of `unit` positions: one or two for each chunk."""
    for chunk in range((m - n) // part.unit, (m - 1) // part.unit + 1):
        low, high = max(m - n, chunk * part.unit), min(m, (chunk + 1) * part.unit)
        left, right = part.span(low, low)
        left = max(begin, left)
        if part.start == 0:  # of which the query's own chunk is causal
            yield Region(index, low, high, left, high, 0)
        elif left < right:
            yield Region(index, low, high, left, right)
