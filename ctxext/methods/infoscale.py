"""InfoScale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.methods import register
from ctxext.methods.base import QueryScale, require

if TYPE_CHECKING:
    from torch import Tensor


@register("infoscale")
@dataclass(frozen=True)
class InfoScale(QueryScale):
    """InfoScale: sharper queries the more keys there are, by the geometry of the head's sphere.

    Formula: query × max(1, √((1 − n^(−2/D))/(1 − T^(−2/D)))), n counted from 1; without the maximum
    if clip=false

    Source: Information Entropy Invariance, arXiv 2501.08570; its code takes the maximum in some
    models alone

    Parameters: dim (D, at least 1; default the head size; its code has all heads together in some
    models), clip (default true)

    Inside T: exactly the identity with clip=true.

    Beyond T: logits grow, by less than √(ln n/ln T).
    """

    dim: int | None = None
    clip: bool = True

    def __post_init__(self) -> None:
        require(self.dim is None or self.dim >= 1, "dim", self.dim, "at least 1")

    def scale_on(self, n: Tensor, trained: int, head_dim: int) -> Tensor:
        """√((1 − n^(−2/D))/(1 − T^(−2/D))), at least 1 if clipped."""
        power = -2 / (self.dim or head_dim)
        scale: Tensor = ((1 - n**power) / (1 - trained**power)).sqrt()
        return scale.clamp(min=1.0) if self.clip else scale
