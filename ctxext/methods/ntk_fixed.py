"""NTK-RoPE-fixed."""

from __future__ import annotations

from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Rotary, Stretch


@register("ntk-fixed")
@dataclass(frozen=True)
class NTKFixed(Stretch):
    """NTK-RoPE-fixed: the radix view carried through, so that the fastest pair shares the work.

    Formula: λ_i = k^(2(i+1)/d)

    Source: kexue.fm 9706 (Transformer upgrade 11)

    Parameters: factor (k, at least 1; default L/T, at least 1)

    Inside T: identity at k = 1; above, a small loss.

    Beyond T: as for ntk, with a little more room for the pairs in the middle.
    """

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = k^(2(i+1)/d)."""
        return [self.k ** (2 * (i + 1) / rotary.dim) for i in range(len(rotary.theta))]
