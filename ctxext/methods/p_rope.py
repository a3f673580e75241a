"""p-RoPE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Frequency, Range, Rotary, Span, require


@register("p-rope")
@dataclass(frozen=True)
class PRoPE(Frequency):
    """p-RoPE: the slowest pairs do not turn at all, so that they carry meaning at any distance.

    Formula: λ_i = 1 for i < ⌊keep·d/2⌋, else ∞

    Source: Round and Round We Go, arXiv 2410.06205; equal to transformers' `proportional`

    Parameters: keep (share of the pairs, above 0, at most 1; default 0.75)

    Inside T: identity at keep=1; below, what slow pairs told of position is lost, which an
    untrained model pays for.

    Beyond T: slow pairs, whose angles would leave what training saw, stay at none; others turn on.
    """

    keep: float = 0.75

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, "keep", self.keep, "above 0, at most 1")

    def search(self, span: Span) -> dict[str, Range] | None:
        """keep from a quarter to all."""
        return {"keep": Range(0.25, 1, log=False)}

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = 1, or ∞."""
        kept = int(self.keep * rotary.dim // 2)
        return [1.0 if i < kept else math.inf for i in range(len(rotary.theta))]

    def stock(self, rotary: Rotary) -> dict[str, Any]:
        """Transformers' `proportional`."""
        return {"rope_type": "proportional", "partial_rotary_factor": self.keep}
