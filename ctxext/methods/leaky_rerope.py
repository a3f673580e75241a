"""Leaky ReRoPE."""

from __future__ import annotations

import dataclasses
import math
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
    require,
    settled,
    tokens_between,
)
from ctxext.notation import AUTO, Auto


@register("leaky-rerope")
@dataclass(frozen=True)
class LeakyReRoPE(Distance):
    """Leaky ReRoPE: exact positions inside a window, steps of 1/leak beyond it.

    Formula: relative position δ if δ < w, else w + (δ−w)/leak

    Source: kexue.fm 9708 and 9728 (Transformer upgrade 12, 13)

    Parameters: window (w, tokens, at least 1; default T/4), leak (at least 1; default
    max(1, ⌈(L−1−w)/(T/2−w)⌉), which keeps every relative position within T/2; auto: 1 up to T,
    beyond that rule, or the next larger of the ladder), ladder (of leak=auto: rising numbers such
    as 1/4/16; default 1/2/4/8/…)

    Inside T: keys more than w back are seen nearer than they are, which costs little.

    Beyond T: relative positions reach w + (L−1−w)/leak, with the default leak at most T/2.
    """

    autos = ("leak",)

    window: int | None = None
    leak: float | Auto | None = None
    ladder: str | None = None

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")
        check_auto(self.leak, "leak", self.ladder)

    def resolve(self, span: Span) -> LeakyReRoPE:
        """w = T/4, and the rule of thumb's leak, by default."""
        w = self.window or max(1, span.trained // 4)
        leak = settled(self.leak, lambda: self._default(w, span), self.ladder)
        return dataclasses.replace(self, window=w, leak=leak, ladder=None)

    def _default(self, w: int, span: Span) -> float:
        length = span.need_length("leak")
        room, far = span.trained / 2 - w, length - 1 - w
        if far <= 0 or (self.leak == AUTO and length <= span.trained):
            return 1.0
        if room <= 0:
            raise UsageError(f"window {w} leaves no default leak: give leak, or window < T/2")
        return float(max(1, math.ceil(far / room)))

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/16 to T; leaks up to four times as large as keep to T/2 with w = T/4."""
        return {
            "window": tokens_between(span.trained / 16, span.trained),
            "leak": Range(1, 16 * span.stretch()),
        }

    def parts(self) -> tuple[Part, ...]:
        """Far keys stand at k/leak, far queries at w + (q−w)/leak."""
        return leaky_parts(*self.resolved("window", "leak"))


def leaky_parts(w: int, leak: float) -> tuple[Part, ...]:
    """δ if δ < w, else w + (δ−w)/leak; leaks below 1 are for training (inv-leaky-rerope)."""
    return (
        Part(0, w, identity, identity),
        Part(w, None, lambda q: w + (q - w) / leak, lambda k: k / leak),
    )
