"""Dual Chunk Attention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.errors import UsageError
from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Range, Span, require, tokens_between

if TYPE_CHECKING:
    from torch import Tensor


@register("dca")
@dataclass(frozen=True)
class DualChunk(Distance):
    """Dual Chunk Attention: keys count anew in each chunk, and queries stand behind them.

    Formula: keys at k mod s; queries at q mod s for keys of their own chunk, at s + (q mod s) for
    those of the chunk before, but reach−1 at most, and from the step `local` of a chunk on, and at
    reach−1 for older ones (q and k counted from 0)

    Source: Dual Chunk Attention, arXiv 2402.17463

    Parameters: chunk (s, tokens, below reach; default 3T/4), local (steps, at least 1; default
    reach − s), reach (tokens that positions stay below; default T)

    Inside T: identity up to s + local, by default T.

    Beyond T: no relative position is above reach − 1; keys of a query's own chunk keep their
    distance, and old ones are told apart by their place in their chunk alone.
    """

    absolute = True

    chunk: int | None = None
    local: int | None = None
    reach: int | None = None

    def __post_init__(self) -> None:
        for name in ("chunk", "local", "reach"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1")
        if self.chunk is not None and self.reach is not None:
            require(self.chunk < self.reach, "chunk", self.chunk, f"below reach, {self.reach}")

    def resolve(self, span: Span) -> DualChunk:
        """s = 3T/4, local = reach − s and reach = T by default."""
        reach = self.reach or span.trained
        chunk = self.chunk or max(1, 3 * span.trained // 4)
        if chunk >= reach:
            raise UsageError(f"chunk {chunk} is not below {reach}: give a smaller chunk, or reach")
        return dataclasses.replace(
            self, chunk=chunk, local=self.local or reach - chunk, reach=reach
        )

    def search(self, span: Span) -> dict[str, Range] | None:
        """s from an eighth of the reach to seven of them."""
        reach = self.reach or span.trained
        return {"chunk": tokens_between(reach / 8, 7 * reach // 8)}

    def parts(self) -> tuple[Part, ...]:
        """The same chunk, the one before, and all older ones."""
        s, local, reach = map(int, self.resolved("chunk", "local", "reach"))
        last = reach - 1

        def inside(position: Tensor) -> Tensor:
            return position % s

        def behind(q: Tensor) -> Tensor:
            step = q % s
            return (step + s).clamp(max=last).where(step < local, q * 0 + last)

        return (
            Part(0, 1, inside, inside, unit=s),
            Part(1, 2, behind, inside, unit=s),
            Part(2, None, lambda q: q * 0 + last, inside, unit=s),
        )
