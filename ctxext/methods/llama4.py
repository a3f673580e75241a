"""Llama 4's attention temperature."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ctxext.methods import register
from ctxext.methods.base import QueryScale, Range, Span, require, tokens_between

if TYPE_CHECKING:
    from torch import Tensor


@register("llama4")
@dataclass(frozen=True)
class Llama4(QueryScale):
    """Llama 4's temperature: logits get sharper in steps of whole trained lengths.

    Formula: query × (1 + scale·ln(1 + ⌊(n−1)/floor⌋)), n counted from 1

    Source: Llama 4, whose own code has n for n − 1; equal to transformers' for `ministral3`

    Parameters: floor (tokens, at least 1; default T), scale (0 to 100; default 0.1)

    Inside T: exactly the identity, up to floor.

    Beyond T: logits grow with the logarithm of the length, 1.2 times from 7T on.
    """

    floor: int | None = None
    scale: float = 0.1  # type: ignore[assignment]

    def __post_init__(self) -> None:
        require(self.floor is None or self.floor >= 1, "floor", self.floor, "at least 1")
        require(0 <= self.scale <= 100, "scale", self.scale, "from 0 to 100")

    def resolve(self, span: Span) -> Llama4:
        """floor = T by default."""
        return dataclasses.replace(self, floor=self.floor or span.trained)

    def search(self, span: Span) -> dict[str, Range] | None:
        """floor from T/4 to 4T, scale from 0.01 to 1."""
        steps = tokens_between(span.trained / 4, 4 * span.trained)
        return {"floor": steps, "scale": Range(0.01, 1)}

    def scale_on(self, n: Tensor, trained: int, head_dim: int) -> Tensor:
        """1 + scale·ln(1 + ⌊(n−1)/floor⌋)."""
        return 1 + self.scale * ((n - 1) / (self.floor or trained)).floor().log1p()
