"""Dynamic NTK scaling, its base fixed once for a sequence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ctxext.methods import register
from ctxext.methods.base import Frequency, Range, Rotary, Span, require
from ctxext.methods.ntk import NTK


@register("dynamic-ntk")
@dataclass(frozen=True)
class DynamicNTK(Frequency):
    """Dynamic NTK: ntk with the factor that the sequence at hand needs, and one base for all of it.

    Formula: ntk with k = factor·s/T − (factor − 1), at least 1

    Source: /u/emozilla on Reddit, 2023; equal to transformers' `dynamic` at s tokens. Theirs
    changes the base as a sequence grows, under keys that are cached by the old one; here k is
    fixed when the patch is put on.

    Parameters: factor (at least 1; default 1), sequence (s, tokens, prompt and continuation;
    default L)

    Inside T: identity where s is at most T.

    Beyond T: as for ntk; a factor above 1 stretches further than s needs.
    """

    factor: float = 1.0
    sequence: int | None = None

    def __post_init__(self) -> None:
        require(self.factor >= 1, "factor", self.factor, "at least 1")
        some = self.sequence is None or self.sequence >= 1
        require(some, "sequence", self.sequence, "at least 1")

    def resolve(self, span: Span) -> DynamicNTK:
        """s = L by default."""
        if self.sequence is not None:
            return self
        return dataclasses.replace(self, sequence=span.need_length("sequence"))

    def search(self, span: Span) -> dict[str, Range] | None:
        """Factors up to 4."""
        return {"factor": Range(1, 4)}

    def extension(self, trained: int) -> float:
        """k."""
        return self._k(trained)

    def scales(self, rotary: Rotary) -> list[float]:
        """λ_i = k^(2i/(d−2))."""
        return self._ntk(rotary).scales(rotary)

    def stock(self, rotary: Rotary) -> dict[str, Any] | None:
        """The base that transformers' `dynamic` has at s tokens."""
        return self._ntk(rotary).stock(rotary)

    def _ntk(self, rotary: Rotary) -> NTK:
        return NTK(factor=self._k(rotary.trained))

    def _k(self, trained: int) -> float:
        require(self.sequence is not None, "sequence", None, "resolved first")
        return max(1.0, self.factor * (self.sequence or 0) / trained - (self.factor - 1))
