"""A list of numbers drawn as a curve: logarithms at a few places, and straight between them."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence

KNOTS = 8  # places at most
DIGITS = 4  # significant ones of what is drawn
FIRST = 12  # points before those that a sampler proposes
SPREAD = 0.15  # of ln k, by which other first points differ from guesses


def places_of(count: int) -> list[int]:
    """The places, from the first to the last of `count`."""
    knots = min(KNOTS, count)
    return [round(i * (count - 1) / max(1, knots - 1)) for i in range(knots)]


def curve(logs: Sequence[float], count: int) -> list[float]:
    """The numbers whose logarithms at the places are these."""
    places, found = places_of(count), []
    for at in range(count):
        after = min(bisect(places, at), len(places) - 1)
        before = max(0, after - 1)
        low, high = places[before], places[after]
        share = (at - low) / (high - low) if high > low else 0.0
        found.append(rounded(math.exp(logs[before] * (1 - share) + logs[after] * share)))
    return found


def rounded(x: float) -> float:
    """To so many significant digits."""
    return float(f"{x:.{DIGITS}g}")
