"""Position interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Rotary, Stretch


@register("pi")
@dataclass(frozen=True)
class PositionInterpolation(Stretch):
    """Position Interpolation: squeeze all positions into the trained range, all pairs alike.

    Formula: λ_i = k

    Source: Position Interpolation, arXiv 2306.15595

    Parameters: factor (k, at least 1; default L/T, at least 1)

    Inside T: identity at k = 1; above, neighbouring tokens blur, and an untrained model pays
    for it everywhere.

    Beyond T: no angle leaves what training saw, up to k·T.
    """

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = k."""
        return [self.k] * len(rotary.theta)

    def stock(self, rotary: Rotary) -> dict[str, Any]:
        """Transformers' `linear`."""
        return {"rope_type": "linear", "factor": self.k}
