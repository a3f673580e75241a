"""Next-token accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from ctxext.tasks import register
from ctxext.tasks.base import Score, TokenScores, TokenTask


@register("acc")
@dataclass(frozen=True)
class Accuracy(TokenTask):
    """Mean next-token accuracy, 0 to 1, over the windows and tokens that `ppl` scores: how often
    the model's first choice is the token that follows.
    """

    metric = "accuracy"
    higher_is_better = True

    def summarise(self, scores: TokenScores) -> Score:
        """The share of hits, and its standard error over windows."""
        return Score(*scores.accuracy())
