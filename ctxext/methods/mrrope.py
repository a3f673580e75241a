"""MrRoPE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ctxext.methods import register
from ctxext.methods.base import Range, Rotary, Span, Stretch
from ctxext.methods.yarn import Yarn, pair_turning


@register("mrrope")
@dataclass(frozen=True)
class MrRoPE(Stretch):
    """MrRoPE: yarn's three bands, but the middle one changes its radix pair by pair up to k.

    Formula: λ_i = k^(j/m) for uni and k^(j(j+1)/(m(m+1))) for pro, j = i − a but 0 to m, m = b − a,
    where the pairs a (rounded down, at least 0) and b (rounded up, below d) turn beta_fast and
    beta_slow times within T; where m ≤ 0, 1 up to a and k beyond; logits × (0.1 ln k + 1)²

    Source: MrRoPE, arXiv 2601.22181; the radix3 and radix of its code

    Parameters: factor (k, at least 1; default L/T, at least 1), kind (pro, progressive, or uni,
    uniform; default pro), beta_fast (turns; default 32), beta_slow (turns; default 1)

    Inside T: identity at k = 1; above, a small loss.

    Beyond T: as for yarn; pro leaves more of the middle band as it is.
    """

    kind: Literal["pro", "uni"] = "pro"
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._yarn()

    def search(self, span: Span) -> dict[str, Range] | None:
        """As yarn's."""
        return self._yarn().search(span)

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = k^(j/m) or k^(j(j+1)/(m(m+1)))."""
        low = max(math.floor(pair_turning(self.beta_fast, rotary)), 0)
        high = min(math.ceil(pair_turning(self.beta_slow, rotary)), rotary.dim - 1)
        middle, pairs = high - low, range(len(rotary.theta))
        if middle <= 0:
            return [self.k if i > low else 1.0 for i in pairs]
        steps = [min(max(i - low, 0), middle) for i in pairs]
        if self.kind == "uni":
            return [self.k ** (j / middle) for j in steps]
        return [self.k ** (j * (j + 1) / (middle * (middle + 1))) for j in steps]

    def attention_factor(self) -> float:
        """0.1 ln k + 1."""
        return 0.1 * math.log(self.k) + 1

    def _yarn(self) -> Yarn:
        """Yarn of the same bands, whose bounds are the same; UsageError beyond them."""
        return Yarn(None, None, self.layers, self.beta_fast, self.beta_slow)
