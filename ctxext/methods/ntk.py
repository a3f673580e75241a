"""NTK-aware scaling, as the community uses it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Rotary, Stretch


@register("ntk")
@dataclass(frozen=True)
class NTK(Stretch):
    """NTK-aware scaling: a larger base, so that the slowest pair is stretched by exactly k.

    Formula: λ_i = k^(2i/(d−2)), which is base·k^(d/(d−2))

    Source: bloc97 on Reddit, 2023 ("NTK-aware scaled RoPE")

    Parameters: factor (k, at least 1; default L/T, at least 1)

    Inside T: identity at k = 1; above, a small loss, since fast pairs keep their resolution.

    Beyond T: the slowest pair stays within the angles of training up to k·T; those in the
    middle leave them before, so that loss grows before k·T is reached.
    """

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = k^(2i/(d−2)); the only pair of d = 2 stays as it is."""
        last = max(1, len(rotary.theta) - 1)
        return [self.k ** (i / last) for i in range(len(rotary.theta))]

    def stock(self, rotary: Rotary) -> dict[str, Any] | None:
        """base·k^(d/(d−2)), if a float holds it; with one pair, d = 2, any base gives θ_0 = 1."""
        try:
            base = rotary.base * self.k ** (rotary.dim / max(1, rotary.dim - 2))
        except OverflowError:
            return None
        return {"rope_theta": base} if math.isfinite(base) else None
