"""LM-Infinite."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Range, Span, identity, require, tokens_between
from ctxext.notation import Count


@register("lm-infinite")
@dataclass(frozen=True)
class LMInfinite(Distance):
    """LM-Infinite: the last keys and the very first ones, these never further off than the window.

    Formula: relative position min(δ, w); only δ < w and the first `sinks` keys are seen

    Source: LM-Infinite, arXiv 2308.16137

    Parameters: window (w, tokens, at least 1; default T), sinks (keys, at least 0; default 10)

    Inside T: identity up to w.

    Beyond T: no relative position is above w, and attention keeps the first keys, where much of
    its weight goes; what lies between is lost, but for what layers pass on.
    """

    absolute = True
    cached = 0  # the few sinks are turned instead

    window: int | None = None
    sinks: Count = 10

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")
        require(self.sinks >= 0, "sinks", self.sinks, "at least 0")

    def resolve(self, span: Span) -> LMInfinite:
        """w = T by default."""
        return dataclasses.replace(self, window=self.window or span.trained)

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/8 to T, and up to 64 sinks."""
        return {
            "window": tokens_between(span.trained / 8, span.trained),
            "sinks": tokens_between(1, 64),
        }

    def parts(self) -> tuple[Part, ...]:
        """Sinks that the window has left behind stand at 0, their queries at w."""
        (w,) = self.resolved("window")
        return (
            Part(0, w, identity, identity),
            Part(w, None, lambda q: q * 0 + w, lambda k: k * 0, first=self.sinks),
        )
