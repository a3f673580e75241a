"""SelfExtend."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.errors import UsageError
from ctxext.methods import register
from ctxext.methods.base import (
    Distance,
    Part,
    Range,
    Span,
    check_auto,
    identity,
    parse_ladder,
    require,
    settled,
    tokens_between,
)
from ctxext.notation import Auto


@register("self-extend")
@dataclass(frozen=True)
class SelfExtend(Distance):
    """SelfExtend: exact positions inside a window, those of whole groups of tokens beyond it.

    Formula: relative position δ if δ < w, else ⌊q/G⌋ − ⌊k/G⌋ + w − ⌊w/G⌋ (q and k counted from 0)

    Source: SelfExtend, arXiv 2401.01325, with one floor for prefill and decoding

    Parameters: window (w, tokens, at least 1; default T/4), group (G, tokens, at least 1; default
    max(1, ⌈(L−w)/(T−w)⌉); auto: that, or the next larger of the ladder), ladder (of group=auto:
    rising numbers such as 1/4/16; default 1/2/4/8/…)

    Inside T: keys more than w back are seen nearer than they are, G at a time at one place;
    identity at G = 1.

    Beyond T: relative positions reach about w + (L−w)/G, with the default group at most T.
    """

    absolute = True
    autos = ("group",)

    window: int | None = None
    group: int | Auto | None = None
    ladder: str | None = None

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")
        check_auto(self.group, "group", self.ladder)
        whole = all(rung.is_integer() for rung in parse_ladder(self.ladder) or ())
        require(whole, "ladder", repr(self.ladder), "whole numbers")

    def resolve(self, span: Span) -> SelfExtend:
        """w = T/4, and the smallest group that keeps relative positions within T, by default."""
        w = self.window or max(1, span.trained // 4)
        group = int(settled(self.group, lambda: self._default(w, span), self.ladder))
        return dataclasses.replace(self, window=w, group=group, ladder=None)

    @staticmethod
    def _default(w: int, span: Span) -> int:
        room, far = span.trained - w, span.need_length("group") - w
        if far <= 0:
            return 1
        if room <= 0:
            raise UsageError(f"window {w} leaves no default group: give group, or window < T")
        return max(1, -(-far // room))

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/16 to T, G up to four times as large as L/T."""
        return {
            "window": tokens_between(span.trained / 16, span.trained),
            "group": tokens_between(1, 4 * span.stretch()),
        }

    def parts(self) -> tuple[Part, ...]:
        """Far keys stand at ⌊k/G⌋, far queries at ⌊q/G⌋ + w − ⌊w/G⌋."""
        w, group = self.resolved("window", "group")
        return (
            Part(0, w, identity, identity),
            Part(w, None, lambda q: q // group + (w - w // group), lambda k: k // group),
        )
