"""Perplexity with a sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ctxext.errors import UsageError
from ctxext.tasks import register
from ctxext.tasks.base import Score, TokenScores, TokenTask
from ctxext.tasks.ppl import perplexity

if TYPE_CHECKING:
    from ctxext.tasks.windows import Windows


@register("ppl-sliding")
@dataclass(frozen=True)
class SlidingPerplexity(TokenTask):
    """Perplexity over windows of the length that begin `stride` tokens apart: every token is scored
    once, with at least length − stride tokens before it but at the beginning of the text; exp of
    the mean over tokens, never a mean over windows.
    """

    metric = "perplexity"
    higher_is_better = False
    stride: int = field(default=256, metadata={"help": "stride (tokens; default 256)"})

    def __str__(self) -> str:
        """The spec, always with its stride."""
        return f"{self.name}:stride={self.stride}"

    def resolve(self, trained: int, lengths: Sequence[int]) -> SlidingPerplexity:
        """Itself; UsageError where a window would not reach the one before it."""
        if self.stride >= min(lengths):
            raise UsageError(
                f"{self} leaves out tokens at length {min(lengths)}: give a stride below the length"
            )
        return self

    def reads(self, length: int, limit: int) -> int:
        """A window, and a stride for each that follows."""
        return length + (limit - 1) * self.stride

    def windows(
        self, ids: Any, length: int, start: int | None, limit: int | None, trained: int
    ) -> Windows:
        """Windows `stride` tokens apart, each scoring what none before it held."""
        from ctxext.tasks.windows import slide

        return slide(ids, length, start, limit, self.stride)

    def summarise(self, scores: TokenScores) -> Score:
        """exp of the mean loss over tokens; its error takes windows as independent."""
        return perplexity(scores)
