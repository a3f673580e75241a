"""Perplexity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ctxext.tasks import register
from ctxext.tasks.base import Summary, Task, TokenScores, standard_error


@register("ppl")
@dataclass(frozen=True)
class Perplexity(Task):
    """Perplexity over consecutive windows that do not overlap, of exactly the length, every token
    but a window's first scored; exp of the mean over tokens, never a mean over windows.
    """

    metric = "perplexity"

    def summarise(self, scores: TokenScores) -> Summary:
        """exp(mean nll); its standard error is that of the mean times the value (delta method)."""
        value = math.exp(scores.nll.mean())
        error = standard_error(scores.nll.mean(1))
        return Summary(value, None if error is None else value * error)
