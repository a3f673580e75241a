"""Perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxext.tasks import register
from ctxext.tasks.base import Score, TokenScores, TokenTask


def perplexity(scores: TokenScores) -> Score:
    """exp(mean nll); its standard error is that of the mean times the value (delta method)."""
    mean, error = scores.mean_nll()
    return Score(math.exp(mean), None if error is None else math.exp(mean) * error)


@register("ppl")
@dataclass(frozen=True)
class Perplexity(TokenTask):
    """Perplexity over consecutive windows that do not overlap, of exactly the length, every token
    but a window's first scored; exp of the mean over tokens, never a mean over windows.
    """

    metric = "perplexity"
    higher_is_better = False

    def summarise(self, scores: TokenScores) -> Score:
        """exp of the mean loss over tokens."""
        return perplexity(scores)
