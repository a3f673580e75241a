"""StreamingLLM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Range, Span, identity, require, tokens_between
from ctxext.notation import Count


@register("streaming")
@dataclass(frozen=True)
class Streaming(Distance):
    """StreamingLLM: the first keys and the last ones, and positions as if there were no others.

    Formula: relative position δ for δ < w, min(q, sinks+w−1) − k for the first `sinks` keys
    beyond; no others are seen (q and k counted from 0)

    Source: StreamingLLM, arXiv 2309.17453

    Parameters: window (w, tokens with the query's own, at least 1; default T − sinks), sinks
    (keys, at least 0; default 4)

    Inside T: identity up to sinks + w.

    Beyond T: no relative position is above sinks + w − 1; what lies between is lost, but for what
    layers pass on.
    """

    absolute = True

    window: int | None = None
    sinks: Count = 4

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")
        require(self.sinks >= 0, "sinks", self.sinks, "at least 0")

    def resolve(self, span: Span) -> Streaming:
        """w = T − sinks by default."""
        window = self.window or max(1, span.trained - self.sinks)
        return dataclasses.replace(self, window=window)

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/8 to T, and up to 64 sinks."""
        return {
            "window": tokens_between(span.trained / 8, span.trained),
            "sinks": tokens_between(1, 64),
        }

    def parts(self) -> tuple[Part, ...]:
        """A query with sinks beyond its window stands at the end of what is kept."""
        (w,) = self.resolved("window")
        last = self.sinks + w - 1
        return (
            Part(0, w, identity, identity),
            Part(w, None, lambda q: q.clamp(max=last), identity, first=self.sinks),
        )
