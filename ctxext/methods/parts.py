"""Parts of attention: some of the pairs of a query and a key, and the positions they take there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ctxext.methods.base import Rotary

    Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """Some of the pairs of a query and a key not ahead of it, and the positions they take there.

    The pairs are those with start ≤ ⌊q/unit⌋ − ⌊k/unit⌋ < stop, q and k true positions in tokens;
    with a `unit` of 1 that is start ≤ δ < stop. `stop` None: no end. With `first` only the keys at
    positions below it are meant: such a part has no end, and a unit of 1.

    `query` and `key` map true positions (any tensor of numbers, tokens) to effective ones, so
    that the part is plain attention between R(query(q))·q and R(key(k))·k.

    With `scales` the part has frequencies of its own: pair i stands at offset + query(q)/λ_i and
    at key(k)/λ_i, a λ of infinity for a pair that does not turn.

    Attributes:
        scales: λ_i for each pair [d/2] of a model's own rotation.
        offset: where queries stand before what λ divides, in tokens.
        extension: the λ of the slowest pairs, by which the part reaches further.
        factor: what scores are multiplied by.
    """

    start: int
    stop: int | None
    query: Map
    key: Map
    unit: int = 1
    first: int | None = None
    scales: Callable[[Rotary], Sequence[float]] | None = None
    offset: float = 0.0
    extension: float = 1.0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.first is not None and (self.stop is not None or self.unit != 1):
            raise ValueError("a part of the first keys has no end, and a unit of 1")

    def on(self, rotary: Rotary) -> Part:
        """The part on this model; with `scales` positions [·] become those of pairs [·, d/2]."""
        if self.scales is None:
            return self
        scales = tuple(self.scales(rotary))

        def each(own: Map, offset: float) -> Map:
            return lambda p: offset + own(p)[..., None] / p.new_tensor(scales)

        query, key = each(self.query, self.offset), each(self.key, 0.0)
        return dataclasses.replace(self, query=query, key=key, scales=None, offset=0.0)

    def span(self, oldest: int, newest: int) -> tuple[int, int]:
        """Between which positions the keys are that queries oldest … newest have: low, high.

        Where there are none, high ≤ low; for one query, oldest = newest, it has all of them.
        """
        low, high = 0, min(newest + 1, (newest // self.unit - self.start + 1) * self.unit)
        if self.stop is not None:
            low = max(0, (oldest // self.unit - self.stop + 1) * self.unit)
        return low, high if self.first is None else min(high, self.first)

    def holds(self, query: Tensor, key: Tensor) -> Tensor:
        """Which pairs are the part's, for integer positions of shapes that broadcast."""
        steps = query - key
        held = steps >= (0 if self.unit > 1 else self.start)
        if self.unit > 1:
            steps = query // self.unit - key // self.unit
            held = held & (steps >= self.start)
        if self.stop is not None:
            held = held & (steps < self.stop)
        return held if self.first is None else held & (key < self.first)


def identity(position: Tensor) -> Tensor:
    """The true position."""
    return position


def as_held(position: Tensor) -> Tensor:
    """No turn at all: the `key` of parts that take keys as a cache holds them."""
    return position * 0
