"""Log-n attention scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.methods import register
from ctxext.methods.base import QueryScale, require

if TYPE_CHECKING:
    from torch import Tensor


@register("logn")
@dataclass(frozen=True)
class LogN(QueryScale):
    """Log-n scaling: sharper queries the more keys there are, so that entropy stays put.

    Formula: query × max(1, ln n/ln T)^power, n counted from 1; without the maximum if clip=false

    Source: kexue.fm 8823 (entropy invariance), 9675 and 9706; `ntk-old+logn` is Entropy-ABF, arXiv
    2401.07004, without its training and with log n in every layer

    Parameters: clip (default true; false for models that were trained with log-n), power (0.01 to
    10; default 1; laws from (ln n)^½ to (ln n)² have been put forward)

    Inside T: exactly the identity with clip=true.

    Beyond T: queries grow by ln n/ln T, so that attention spreads over more keys no more than at T.
    """

    clip: bool = True
    power: float | None = None

    def __post_init__(self) -> None:
        known = self.power is None or 0.01 <= self.power <= 10
        require(known, "power", self.power, "from 0.01 to 10")
        if self.power == 1:  # one spec for one method
            object.__setattr__(self, "power", None)

    def scale(self, n: Tensor, trained: int) -> Tensor:
        """max(1, ln n/ln T)^power, or (ln n/ln T)^power."""
        scale = n.log() / math.log(trained)
        scale = scale.clamp(min=1.0) if self.clip else scale
        return scale if self.power is None else scale**self.power
