"""Log-n attention scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.methods import register
from ctxext.methods.base import QueryScale

if TYPE_CHECKING:
    from torch import Tensor


@register("logn")
@dataclass(frozen=True)
class LogN(QueryScale):
    """Log-n scaling: sharper queries the more keys there are, so that entropy stays put.

    Formula: query × max(1, ln n/ln T), n counted from 1; without the maximum if clip=false

    Source: kexue.fm 8823 (entropy invariance), 9675 and 9706

    Parameters: clip (default true; false for models that were trained with log-n)

    Inside T: exactly the identity with clip=true.

    Beyond T: queries grow by ln n/ln T, so that attention spreads over more keys no more than at T.
    """

    clip: bool = True

    def scale(self, n: Tensor, trained: int) -> Tensor:
        """max(1, ln n/ln T), or ln n/ln T."""
        scale = n.log() / math.log(trained)
        return scale.clamp(min=1.0) if self.clip else scale
