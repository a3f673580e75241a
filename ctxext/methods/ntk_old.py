"""NTK-RoPE-old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Rotary, Stretch


@register("ntk-old")
@dataclass(frozen=True)
class NTKOld(Stretch):
    """NTK-RoPE-old: the base times k, the first radix view of NTK-aware scaling.

    Formula: λ_i = k^(2i/d), which is base·k

    Source: kexue.fm 9675 (Transformer upgrade 10)

    Parameters: factor (k, at least 1; default L/T, at least 1)

    Inside T: identity at k = 1; above, a small loss. The slowest pair is stretched by a little
    less than k.

    Beyond T: as for ntk, but the slowest pair leaves the angles of training shortly before k·T.
    """

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = k^(2i/d)."""
        return [self.k ** (2 * i / rotary.dim) for i in range(len(rotary.theta))]

    def stock(self, rotary: Rotary) -> dict[str, Any]:
        """base·k."""
        return {"rope_theta": rotary.base * self.k}
