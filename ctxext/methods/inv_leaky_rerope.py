"""Inverse Leaky ReRoPE, a way to train."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Distance, Part, Span, require
from ctxext.methods.leaky_rerope import leaky_parts

MOST = 1e6  # times T; far angles stay finite in float32


@register("inv-leaky-rerope")
@dataclass(frozen=True)
class InvLeakyReRoPE(Distance):
    """Inverse Leaky ReRoPE, for training alone: long steps beyond a window, which rope then meets.

    Formula: relative position δ if δ < w, else w + (δ−w)·2·expansion, which is leaky-rerope whose
    leak is 1/(2·expansion)

    Source: kexue.fm 9728 (Transformer upgrade 13)

    Parameters: window (w, tokens, at least 1; default T/4), expansion (1 to 1e6; how many times T
    the model is to read; default L/T, at least 1)

    Inside T: train with the patch on, at T, then take it off and run the model with plain rope.
    Put on a model that was not trained so, or left on for reading, it spoils what it is put on.

    Beyond T: training at T has seen relative positions up to w + (T−1−w)·2·expansion, so that
    plain rope reads as far.
    """

    cached = 0  # far keys turn through so large an angle that float32 tells when it is undone

    window: int | None = None
    expansion: float | None = None

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")
        some = self.expansion is None or 1 <= self.expansion <= MOST
        require(some, "expansion", self.expansion, f"at least 1, at most {MOST:g}")

    def resolve(self, span: Span) -> InvLeakyReRoPE:
        """w = T/4 and expansion = L/T by default."""
        expansion = self.expansion
        if expansion is None:
            expansion = max(1.0, span.need_length("expansion") / span.trained)
        window = self.window or max(1, span.trained // 4)
        return dataclasses.replace(self, window=window, expansion=expansion)

    def search(self, span: Span) -> None:
        """It is for training."""
        return

    def parts(self) -> tuple[Part, ...]:
        """Far keys stand at 2·expansion·k, far queries at w + 2·expansion·(q−w)."""
        w, expansion = self.resolved("window", "expansion")
        return leaky_parts(w, 1 / (2 * expansion))
