"""Loss on the same last tokens, as the context to their left grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ctxext.errors import UsageError
from ctxext.notation import format_length
from ctxext.tasks import register
from ctxext.tasks.base import Score, TokenScores, TokenTask
from ctxext.tasks.ppl import perplexity

if TYPE_CHECKING:
    from ctxext.tasks.windows import Windows


@register("ppl-tail")
@dataclass(frozen=True)
class PerplexityOfTails(TokenTask):
    """Perplexity of the last T tokens of each span of text (but the first of them, which has
    nothing before it at length T), read with as much of the span before them as the length holds:
    the same tokens at every length, so longer should be lower (kexue.fm 9708).
    """

    metric = "perplexity"
    higher_is_better = False
    span: int | None = field(
        default=None, metadata={"help": "span (tokens; default the longest length asked for)"}
    )

    def resolve(self, trained: int, lengths: Sequence[int]) -> PerplexityOfTails:
        """The span settled; UsageError for a length below T or above the span."""
        span = self.span or max(lengths)
        for length in lengths:
            if length < trained:
                raise UsageError(
                    f"{self} cannot be measured at length {length}: it scores the last "
                    f"{trained} tokens, the trained length: give at least that"
                )
            if length > span:
                raise UsageError(
                    f"{self} cannot be measured at length {length}, beyond its span: give a span "
                    f"of at least {format_length(length)}, or none"
                )
        return replace(self, span=span)

    def reads(self, length: int, limit: int) -> int:
        """The spans."""
        return limit * (self.span or length)

    def windows(
        self, ids: Any, length: int, start: int | None, limit: int | None, trained: int
    ) -> Windows:
        """The last `length` tokens of each span, the last `trained` − 1 of them scored."""
        from ctxext.tasks.windows import tails

        return tails(ids, length, start, limit, self.span or length, trained)

    def summarise(self, scores: TokenScores) -> Score:
        """exp of the mean loss over the tails' tokens."""
        return perplexity(scores)
