"""The mixed-radix view of RoPE."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Range, Rotary, Span, Stretch, require


@register("beta-radix")
@dataclass(frozen=True)
class BetaRadix(Stretch):
    """Mixed radix: positions as digits whose radix grows with the pair, between PI and NTK.

    Formula: λ_i = exp(a·(i+1)^b), a = ln k/(d/2)^b

    Source: kexue.fm 9706 (Transformer upgrade 11), "NTK-RoPE-mixed"

    Parameters: factor (k, at least 1; default L/T, at least 1), b (exponent, at least 0;
    default 0.625; 1 is ntk-fixed, 0 is pi)

    Inside T: identity at k = 1; above, a small loss.

    Beyond T: more room for the pairs in the middle than ntk, paid for by the fast ones.
    """

    b: float = 0.625

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.b >= 0, "b", self.b, "at least 0")

    def search(self, span: Span) -> dict[str, Range] | None:
        """k, and b from that of pi to twice that of ntk-fixed."""
        return {**(super().search(span) or {}), "b": Range(0, 2, log=False)}

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = exp(a·(i+1)^b) = k^(((i+1)/(d/2))^b), which cannot overflow at a large b."""
        pairs = len(rotary.theta)
        return [math.exp(math.log(self.k) * ((i + 1) / pairs) ** self.b) for i in range(pairs)]
