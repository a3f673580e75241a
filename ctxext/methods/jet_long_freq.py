"""Jet-Long with frequencies."""

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
    Rotary,
    Span,
    identity,
    require,
    tokens_between,
)


@register("jet-long-freq")
@dataclass(frozen=True)
class JetLongFreq(Distance):
    """Jet-Long's frequency form: exact positions inside a window, slower slow pairs beyond it.

    Formula: pair i is turned by θ_i δ if δ < w, else by θ_i (w + (δ−w)/λ_i), with
    λ_i = 1/(1 − m_i (1 − 1/s)) and m_i rising from 0 to 1 between the pairs that turn beta_fast
    and beta_slow times within T; logits × (0.1 ln s + 1)

    Source: Jet-Long, arXiv 2607.07740, its jetlong_freq, with L in place of the length so far

    Parameters: window (w, tokens, at least 1; default T/16), factor (s, at least 1; default
    max(1, (L−w)/(T−w))), beta_fast (turns; default 32), beta_slow (turns; default 1)

    Inside T: identity at s = 1; above, slow pairs see keys more than w back nearer than they are.

    Beyond T: slow pairs stay within the angles of training up to w + s·(T−w); fast ones saw all of
    theirs within T, and stay as they are.
    """

    window: int | None = None
    factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        require(self.window is None or self.window >= 1, "window", self.window, "at least 1")
        require(self.factor is None or self.factor >= 1, "factor", self.factor, "at least 1")
        require(self.beta_slow >= 1e-6, "beta_slow", self.beta_slow, "at least 1e-6 turns")
        require(self.beta_fast <= 1e6, "beta_fast", self.beta_fast, "at most 1e6 turns")
        require(self.beta_fast >= self.beta_slow, "beta_fast", self.beta_fast, "≥ beta_slow")

    def resolve(self, span: Span) -> JetLongFreq:
        """w = T/16, and the factor that brings the last distance to T, by default."""
        w = self.window or max(1, span.trained // 16)
        factor = self.factor if self.factor is not None else self._default(w, span)
        return dataclasses.replace(self, window=w, factor=factor)

    @staticmethod
    def _default(w: int, span: Span) -> float:
        room, far = span.trained - w, span.need_length("factor") - w
        if far <= room:
            return 1.0
        if room <= 0:
            raise UsageError(f"window {w} leaves no default factor: give factor, or window < T")
        return far / room

    def search(self, span: Span) -> dict[str, Range] | None:
        """w from T/64 to T/2, s up to four times as large as L/T."""
        return {
            "window": tokens_between(span.trained / 64, span.trained / 2),
            "factor": Range(1, 4 * span.stretch()),
        }

    def parts(self) -> tuple[Part, ...]:
        """Far keys stand at k/λ_i, far queries at w + (q−w)/λ_i."""
        w, s = self.resolved("window", "factor")
        far = Part(w, None, lambda q: q - w, identity, scales=self.far, offset=w, extension=s)
        parts = (Part(0, w, identity, identity), far)
        return tuple(dataclasses.replace(part, factor=0.1 * math.log(s) + 1) for part in parts)

    def far(self, rotary: Rotary) -> list[float]:
        """λ_i = 1/(1 − m_i (1 − 1/s))."""

        def pair(turns: float) -> float:  # the (fractional) one that turns so often within T
            ratio = math.log(rotary.trained / (turns * 2 * math.pi))
            return rotary.dim * ratio / (2 * math.log(rotary.base))

        count = len(rotary.theta)
        low = max(math.floor(pair(self.beta_fast)), 0)
        high = min(math.ceil(pair(self.beta_slow)), count - 1)
        ramp = [(i - low) / max(high - low, 0.001) for i in range(count)]
        kept = 1 - 1 / (self.factor or 1.0)
        return [1 / (1 - min(max(m, 0.0), 1.0) * kept) for m in ramp]
