"""True positions of queries and of the keys that they may see, and what parts make of them.

Dimensions: b batch, n queries, m keys; in tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from ctxext.methods.base import Part, as_held

Made = TypeVar("Made")


class Band(NamedTuple):
    """A part as some queries and keys have it.

    Attributes:
        low, high: the keys low … high−1 that any of the queries may see in it; none if high ≤ low.
        query: effective positions of the queries [n], or [b, n] where rows differ; float64. Where
            each pair has its own [b or 1, n, d/2].
        key: of those keys; None where they are taken as they are held.
    """

    part: Part
    low: int
    high: int
    query: Tensor
    key: Tensor | None


class Positions:
    """Of n queries and m keys, in ascending order.

    Attributes:
        query, key: [b or 1, n] and [b or 1, m], whole numbers on the CPU.
        first: each row's first key, where a row's keys are consecutive and its queries the last of
            them; None where they are not.
    """

    def __init__(self, query: Tensor, key: Tensor, first: list[int] | None = None) -> None:
        self.query, self.key, self.first = query, key, first
        self._made: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    @classmethod
    def consecutive(cls, n: int, m: int, first: int = 0) -> Positions:
        """Of keys at `first` and on, whose last n are those of the queries."""
        key = torch.arange(first, first + m)[None]
        return cls(key[:, m - n :], key, [first])

    @classmethod
    def by_row(cls, n: int, m: int, firsts: Tensor) -> Positions:
        """As `consecutive`, of rows whose first keys are at `firsts` [b]."""
        key = torch.arange(m) + firsts[:, None]
        return cls(key[:, m - n :], key, firsts.tolist())

    def once(self, of: tuple[Any, ...], what: object, make: Callable[[], Made]) -> Made:
        """What `make` makes of some objects, made once for all layers of a forward."""
        key = (*map(id, of), what)
        if key not in self._made:
            self._made[key] = of, make()  # which keeps them, and so their ids
        return cast("Made", self._made[key][1])

    @property
    def offset(self) -> int | None:
        """The first key's, where one row of consecutive keys is all rows'; else None."""
        return self.first[0] if self.first is not None and len(self.first) == 1 else None

    def span(self, part: Part, start: int, stop: int) -> tuple[int, int]:
        """Between which keys those are that queries start … stop−1 may see in a part: low, high."""
        m = self.key.shape[1]
        if self.first is None:
            return 0, m
        past, low, high = m - self.query.shape[1], m, 0
        for first in self.first:
            least, most = part.span(first + past + start, first + past + stop - 1)
            low, high = min(low, max(0, least - first)), max(high, min(m, most - first))
        return low, high

    def bands(self, parts: tuple[Part, ...]) -> tuple[Band, ...]:
        """Each part as these queries and keys have it; made once for the same tuple of parts."""
        return self.once((parts,), "bands", lambda: tuple(map(self._band, parts)))

    def _band(self, part: Part) -> Band:
        low, high = self.span(part, 0, self.query.shape[1])
        query = row(part.query(self.query.double()))
        key = None if part.key is as_held else self.key[:, low : max(low, high)].double()
        key = None if key is None else row(part.key(key))
        return Band(part, low, high, query, key if key is not None and key.any() else None)

    def tail(self, band: Band, low: int) -> Tensor:
        """Effective positions of a part's keys from `low` on; one tensor whenever it is asked."""
        key, tail = band.key, slice(low - band.low, None)
        assert key is not None
        return self.once((key,), low, lambda: key[:, tail] if key.ndim == 3 else key[..., tail])

    def held(self, part: Part, start: int, stop: int, low: int, high: int) -> Tensor:
        """Which keys low … high−1 queries start … stop−1 have in a part [b or 1, n', m']."""
        return part.holds(self.query[:, start:stop, None], self.key[:, None, low:high])


def row(x: Tensor) -> Tensor:
    """Effective positions without the rows' dimension, where one is all rows' and all pairs'."""
    return x[0] if x.ndim == 2 and len(x) == 1 else x
