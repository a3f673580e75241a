"""YaRN."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Range, Rotary, Span, Stretch, require


@register("yarn")
@dataclass(frozen=True)
class Yarn(Stretch):
    """YaRN: fast pairs stay, slow pairs are interpolated, a ramp between; logits get sharper.

    Formula: θ_i ((1−m_i)/k + m_i), m_i falling from 1 to 0 between the pairs that turn beta_fast
    and beta_slow times within T; logits × (0.1 ln k + 1)²

    Source: YaRN, arXiv 2309.00071; equal to transformers' `yarn`. In place of a yarn of the model's
    own it has that one's mscale, mscale_all_dim and truncate.

    Parameters: factor (k, at least 1; default L/T, at least 1), beta_fast (turns; default 32),
    beta_slow (turns; default 1)

    Inside T: identity at k = 1; above, a small loss.

    Beyond T: slow pairs stay within the angles of training up to k·T; fast ones saw all of
    theirs within T, and stay as they are.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta_slow >= 1e-6, "beta_slow", self.beta_slow, "at least 1e-6 turns")
        require(self.beta_fast <= 1e6, "beta_fast", self.beta_fast, "at most 1e6 turns")
        require(self.beta_fast >= self.beta_slow, "beta_fast", self.beta_fast, "≥ beta_slow")

    def search(self, span: Span) -> dict[str, Range] | None:
        """k, and both ends of the ramp, the fast one above the slow one."""
        slow = min(4.0, self.beta_fast)
        fast = max(8.0, self.beta_slow)
        return {
            **(super().search(span) or {}),
            "beta_fast": Range(fast, max(128.0, fast)),
            "beta_slow": Range(min(0.25, slow), slow),
        }

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = 1/((1−m_i)/k + m_i)."""
        low, high = (pair_turning(b, rotary) for b in (self.beta_fast, self.beta_slow))
        if rotary.variant.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary.dim - 1)
        if low == high:
            high += 0.001  # the paper's code: a step, not a division by zero
        ramp = [(i - low) / (high - low) for i in range(len(rotary.theta))]
        kept = [1 - min(max(r, 0.0), 1.0) for r in ramp]
        return [1 / ((1 - m) / self.k + m) for m in kept]

    def attention_factor(self) -> float:
        """0.1 ln k + 1."""
        return self._sharper(1.0)

    def attention_factor_on(self, rotary: Rotary) -> float:
        """(0.1 mscale ln k + 1)/(0.1 mscale_all_dim ln k + 1) where the model has both."""
        mscale, all_dim = (rotary.variant.get(key) for key in ("mscale", "mscale_all_dim"))
        if not (mscale and all_dim):
            return self.attention_factor()
        return self._sharper(mscale) / self._sharper(all_dim)

    def _sharper(self, mscale: float) -> float:
        return 0.1 * mscale * math.log(self.k) + 1

    def stock(self, rotary: Rotary) -> dict[str, Any]:
        """Transformers' `yarn`."""
        return {
            "rope_type": "yarn",
            "factor": self.k,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
            "original_max_position_embeddings": rotary.trained,
            **rotary.variant,
        }


def pair_turning(turns: float, rotary: Rotary) -> float:
    """The (fractional) pair that makes so many full turns within T tokens."""
    ratio = math.log(rotary.trained / (turns * 2 * math.pi))
    return rotary.dim * ratio / (2 * math.log(rotary.base))
