"""A base of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Frequency, Range, Rotary, Span, require


@register("abf")
@dataclass(frozen=True)
class AdjustedBase(Frequency):
    """Adjusted base frequency: another base in place of the model's own.

    Formula: λ_i = (base/own base)^(2i/d), so that θ_i = base^(−2i/d)

    Source: Effective Long-Context Scaling of Foundation Models, arXiv 2309.16039

    Parameters: base (from 1.1 to 1e15; default 500000, the paper's for a model whose own is 10000)

    Inside T: identity at the model's own base; a larger one costs as ntk-old at the same λ.

    Beyond T: as for ntk-old, whose factor is base/own base.
    """

    base: float = 500_000.0

    def __post_init__(self) -> None:
        require(1.1 <= self.base <= 1e15, "base", self.base, "from 1.1 to 1e15")

    def search(self, span: Span) -> dict[str, Range] | None:
        """Bases from 1e4 to 1e8, and as much more as L is longer than T."""
        return {"base": Range(1e4, min(1e15, 1e8 * span.stretch()))}

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = (base/own base)^(2i/d)."""
        return [(self.base / rotary.base) ** (2 * i / rotary.dim) for i in range(len(rotary.theta))]

    def stock(self, rotary: Rotary) -> dict[str, Any]:
        """The base."""
        return {"rope_theta": self.base}
