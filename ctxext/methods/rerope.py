"""ReRoPE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Range, Span, identity, require, tokens_between


@register("rerope")
@dataclass(frozen=True)
class ReRoPE(Distance):
    """ReRoPE: exact positions inside a window, one constant distance for all beyond it.

    Formula: relative position δ if δ < w, else w

    Source: kexue.fm 9708 (Transformer upgrade 12)

    Parameters: window (w, tokens, at least 1; default T/2)

    Inside T: keys more than w back are seen at distance w, which costs little; identity up to w.

    Beyond T: no relative position is above w, at any length.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")

    def resolve(self, span: Span) -> ReRoPE:
        """w = T/2 by default."""
        return dataclasses.replace(self, window=self.window or max(1, span.trained // 2))

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/16 to T."""
        return {"window": tokens_between(span.trained / 16, span.trained)}

    def parts(self) -> tuple[Part, ...]:
        """Far queries stand at w, far keys at 0."""
        (w,) = self.resolved("window")
        return (
            Part(0, w, identity, identity),
            Part(w, None, lambda q: q * 0 + w, lambda k: k * 0),
        )
