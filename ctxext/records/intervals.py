"""95% intervals of shares and of their differences, which say something of few samples too.

Wilson: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927), 209. Paired shares: T. Tango, Stat. Med. 17
(1998), 891. Two shares: R. G. Newcombe, Stat. Med. 17 (1998), 873, method 10.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

from ctxext.records.metrics import perfect_score
from ctxext.records.record import Record, over_windows

_Z = NormalDist().inv_cdf(0.975)
_HALVINGS = 40


class Interval(NamedTuple):
    """Both ends, with the value between them."""

    low: float
    high: float

    def times(self, scale: float) -> Interval:
        """On another scale."""
        return Interval(self.low * scale, self.high * scale)


def wilson(share: float, count: int) -> Interval:
    """The score interval of a share of `count` samples.

    Of scores from 0 to 1 that are not just 0 or 1 it is too wide, since none with their mean vary
    more than those.
    """
    squared = _Z * _Z / count
    middle = (share + squared / 2) / (1 + squared)
    reach = math.sqrt(squared * (share * (1 - share) + squared / 4)) / (1 + squared)
    return Interval(min(max(0.0, middle - reach), share), max(min(1.0, middle + reach), share))


def student(value: float, stderr: float, count: int) -> Interval:
    """The interval of a mean of `count` samples, 10 or more, with its standard error.

    The quantile is expanded in 1/(count − 1): Abramowitz and Stegun, 26.7.5.
    """
    free, z = count - 1, _Z
    quantile = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    quantile += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return Interval(value - quantile * stderr, value + quantile * stderr)


def tango(gains: int, losses: int, count: int) -> Interval:
    """The score interval of (gains − losses)/count: of `count` samples so many are right where the
    other's are wrong, and so many the other way round."""
    apart = gains - losses

    def inside(difference: float) -> bool:
        """Whether the difference goes with what was found."""
        rest = difference * (1 - difference)
        b = (2 * count - apart) * difference - gains - losses
        only = (math.sqrt(max(0.0, b * b + 8 * count * losses * rest)) - b) / (4 * count)
        variance = max(0.0, count * (2 * only + rest))
        return (apart - count * difference) ** 2 <= _Z * _Z * variance

    ends = []
    for end in (-1.0, 1.0):
        within, beyond = apart / count, end
        for _ in range(_HALVINGS):
            middle = (within + beyond) / 2
            within, beyond = (middle, beyond) if inside(middle) else (within, middle)
        ends.append(beyond)
    return Interval(*ends)


def apart(ours: float, theirs: float, our: Interval, their: Interval) -> Interval:
    """The interval of one value minus another, of samples that are not paired."""
    value = ours - theirs
    below = math.hypot(ours - our.low, their.high - theirs)
    above = math.hypot(our.high - ours, theirs - their.low)
    return Interval(value - below, value + above)


def interval(record: Record) -> Interval | None:
    """Wilson's interval of a finished record's value, on its scale; None where that is a number
    over windows, or is not known to be one from 0 to a perfect score."""
    most, value, count = perfect_score(record), record["value"], record["n"]
    if most is None or over_windows(record) or not count or not 0 <= value <= most:
        return None
    return wilson(value / most, count).times(most)
