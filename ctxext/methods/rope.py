"""Plain RoPE."""

from __future__ import annotations

from dataclasses import dataclass

from ctxext.methods import register
from ctxext.methods.base import Frequency, Rotary


@register("rope")
@dataclass(frozen=True)
class Rope(Frequency):
    """The model as it is; every comparison starts from it.

    Formula: λ_i = 1

    Source: RoFormer, arXiv 2104.09864

    Inside T: what the model was trained to do.

    Beyond T: angles of the slow pairs that it never saw make the loss explode.
    """

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = 1."""
        return [1.0] * len(rotary.theta)
