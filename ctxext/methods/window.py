"""Local attention."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Range, Span, identity, require, tokens_between


@register("window")
@dataclass(frozen=True)
class Window(Distance):
    """Local attention: the last keys alone, and nothing before them.

    Formula: relative position δ; only δ < w is seen

    Source: kexue.fm 9431 (Transformer upgrade 7)

    Parameters: window (w, tokens, at least 1; default T)

    Inside T: identity up to w.

    Beyond T: no relative position is above w, at any length; what lies further back is lost, but
    for what each layer passes on to the next.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")

    def resolve(self, span: Span) -> Window:
        """w = T by default."""
        return dataclasses.replace(self, window=self.window or span.trained)

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/8 to T."""
        return {"window": tokens_between(span.trained / 8, span.trained)}

    def parts(self) -> tuple[Part, ...]:
        """One part, which ends at w."""
        (w,) = self.resolved("window")
        return (Part(0, w, identity, identity),)
