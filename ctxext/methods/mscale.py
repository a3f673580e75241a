"""Yarn's attention temperature alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.methods import register
from ctxext.methods.base import QueryScale, require

if TYPE_CHECKING:
    from torch import Tensor


@register("mscale")
@dataclass(frozen=True)
class MScale(QueryScale):
    """Yarn's temperature without its frequencies: logits get sharper the longer the context.

    Formula: query × (0.1 ln s + 1)^power, s = factor, or max(1, n/T) without one

    Source: YaRN, arXiv 2309.00071, whose queries and keys each carry 0.1 ln k + 1; `dca+mscale` is
    Qwen2.5-1M's recipe, arXiv 2501.15383, but that vLLM leaves cached keys at their writer's scale

    Parameters: factor (s, at least 1; by default each query's own, max(1, n/T)), power (0.01 to 10;
    default 2)

    Inside T: exactly the identity without a factor; with one, sharper logits everywhere.

    Beyond T: logits grow with the logarithm of the length, 1.46 times at 8T.
    """

    factor: float | None = None
    power: float = 2.0

    def __post_init__(self) -> None:
        require(self.factor is None or self.factor >= 1, "factor", self.factor, "at least 1")
        require(0.01 <= self.power <= 10, "power", self.power, "from 0.01 to 10")

    def scale(self, n: Tensor, trained: int) -> Tensor:
        """(0.1 ln s + 1)^power."""
        longer = (n / trained).clamp(min=1.0)
        grown = longer.log() if self.factor is None else n * 0 + math.log(self.factor)
        scale: Tensor = (0.1 * grown + 1) ** self.power
        return scale
