"""Next-token accuracy on text that repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ctxext.tasks import register
from ctxext.tasks.base import Score, TokenScores, TokenTask

if TYPE_CHECKING:
    from ctxext.tasks.windows import Windows


@register("acc-repeat")
@dataclass(frozen=True)
class AccuracyOnRepeated(TokenTask):
    """Mean next-token accuracy, 0 to 1, on windows that say a passage of T tokens again and again:
    the first T tokens of each window that `acc` reads, repeated to the length (kexue.fm 9708).
    """

    metric = "accuracy"
    higher_is_better = True

    def reads(self, length: int, limit: int) -> int:
        """As for `acc`."""
        return limit * length

    def windows(
        self, ids: Any, length: int, start: int | None, limit: int | None, trained: int
    ) -> Windows:
        """The windows of `acc`, each saying its own first `trained` tokens again and again."""
        from ctxext.tasks.windows import cut

        return cut(ids, length, start, limit, trained)

    def summarise(self, scores: TokenScores) -> Score:
        """The share of hits, and its standard error over windows."""
        return Score(*scores.accuracy())
